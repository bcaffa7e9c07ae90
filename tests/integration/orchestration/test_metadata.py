"""metadata.jsonl beside images: what is taken in is pinned to the byte, and a hostile line is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affinery.errors import ConfigInvalid
from orchestration.datasets import ImportedDataset, ensure, import_dataset, init_data
from orchestration.errors import DatasetInvalid
from tests import learning_world as world
from trainers.conditions import condition_record
from trainers.data import load_split, read_square
from trainers.errors import DatasetChanged
from trainers.packs import IMAGES, read_manifest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images, each with a map."""
    made = tmp_path / "told"
    for i in range(6):
        world.image(made / "images" / f"{i}.png", i, mode="RGB")
        world.image(made / "maps" / f"{i}.png", 100 + i)
    return made


def line(i: int, **more: Any) -> dict[str, Any]:
    return {"file_name": f"images/{i}.png", "text": f"picture {i}", "condition": f"maps/{i}.png"} | more


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    (folder / "metadata.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return folder


def imported(data: Path, folder: Path) -> ImportedDataset:
    return import_dataset(data, folder, name="told")


def test_captions_and_maps_come_back_with_their_images(data: Path, folder: Path) -> None:
    found = imported(data, write(folder, *(line(i) for i in reversed(range(6)))))
    assert (found.classes, found.image_count) == (("all",), 6)
    pack = ensure(data, found.dvc_path, found.digest)
    split = load_split(pack, 16, 3, condition_record("depth"))
    for part in (split.train, split.held_out):
        assert part.conditions is not None
        for caption, image, condition in zip(part.captions, part.images, part.conditions, strict=True):
            i = caption.split()[1]
            assert np.array_equal(image.numpy(), read_square(folder / "images" / f"{i}.png", 16, 3))
            assert np.array_equal(condition.numpy(), read_square(folder / "maps" / f"{i}.png", 16, 1))


def test_the_order_of_the_lines_does_not_matter_and_every_word_does(data: Path, folder: Path) -> None:
    first = imported(data, write(folder, *(line(i) for i in range(6))))
    again = imported(data, write(folder, *(line(i) for i in reversed(range(6)))))
    other = imported(data, write(folder, line(0, text="another"), *(line(i) for i in range(1, 6))))
    swapped = imported(data, write(folder, line(0, condition="maps/1.png"), *(line(i) for i in range(1, 6))))
    assert first.digest == again.digest
    assert len({first.digest, other.digest, swapped.digest}) == 3


def test_the_name_of_hugging_faces_datasets_is_taken_too(data: Path, folder: Path) -> None:
    lines = [{"file_name": f"images/{i}.png", "conditioning_image": f"maps/{i}.png"} for i in range(6)]
    found = imported(data, write(folder, *lines))
    images = read_manifest(data / found.dvc_path).images
    assert all(image.condition is not None and image.text is None for image in images)


def test_labels_make_classes(data: Path, folder: Path) -> None:
    lines = [line(i, label="boot" if i % 2 else "coat") for i in range(6)]
    found = imported(data, write(folder, *lines))
    assert (found.classes, found.class_counts) == (("boot", "coat"), (3, 3))


def test_a_changed_map_is_noticed_and_named(data: Path, folder: Path) -> None:
    import zipfile

    found = imported(data, write(folder, *(line(i) for i in range(6))))
    pack = data / found.dvc_path
    with zipfile.ZipFile(pack / IMAGES) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["0000/000002.condition.png"] = entries["0000/000001.condition.png"]
    (pack / IMAGES).chmod(0o644)
    (pack / IMAGES).unlink()
    with zipfile.ZipFile(pack / IMAGES, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(DatasetChanged, match=r"maps/2\.png \(0000/000002\.condition\.png\) was changed"):
        ensure(data, found.dvc_path, found.digest)


def test_what_is_left_out_is_said(data: Path, folder: Path) -> None:
    lines = [line(0), {"file_name": "images/1.png", "author": "x"}]
    notes = " / ".join(imported(data, write(folder, *lines)).notes)
    assert "author is not used" in notes
    assert "9 images are in no line" in notes
    assert "1 of 2 images have no caption" in notes
    assert "1 of 2 images have no condition" in notes


HOSTILE: list[tuple[Any, str]] = [
    ("{", "line 3: it is not JSON"),
    ("[1]", "line 3: it is not a JSON object"),
    ('{"file_name": "images/0.png", "file_name": "images/1.png"}', "line 3: it is not JSON"),
    ("[" * 100_000, "line 3: it is not JSON"),
    ({"text": "a"}, "line 3: it has no file_name"),
    ({"file_name": 3}, "line 3: 3 is not the name of a file"),
    ({"file_name": ""}, "line 3: '' is not the name of a file"),
    ({"file_name": "a\0b"}, "line 3: .* is not the name of a file"),
    ({"file_name": "images\\2.png"}, "line 3: .* is not the name of a file"),
    ({"file_name": "gone.png"}, "line 3: there is no file 'gone.png'"),
    ({"file_name": "images"}, "line 3: there is no file 'images'"),
    ({"file_name": "x" * 5000 + ".png"}, "line 3: there is no file"),
    ({"file_name": "../outside.png"}, "line 3: '../outside.png' leads out of the folder"),
    ({"file_name": "images/../../outside.png"}, "line 3: .* leads out of the folder"),
    ({"file_name": "/etc/passwd"}, "line 3: '/etc/passwd' leads out of the folder"),
    ({"file_name": "C:/outside.png"}, "line 3: .* leads out of the folder"),
    ({"file_name": "link.png"}, "line 3: 'link.png' is or goes through a link"),
    ({"file_name": "linked/0.png"}, "line 3: 'linked/0.png' is or goes through a link"),
    ({"file_name": "notes.txt"}, "line 3: 'notes.txt' is not the name of an image"),
    ({"file_name": "images/0.png"}, "line 3: images/0.png stands in line 1 already"),
    (line(2, condition="../maps/2.png"), "line 3: '../maps/2.png' leads out of the folder"),
    (line(2, condition=7), "line 3: its condition is not the name of one file"),
    (
        line(2, conditioning_image="maps/3.png"),
        "line 3: its condition and conditioning_image is not the name",
    ),
    (
        line(2, condition="large.png"),
        r"images/2.png \(metadata.jsonl, line 3\): the 32 × 8 pixels of its map large.png are not its own 16",
    ),
    (
        line(2, condition="broken.png"),
        r"images/2.png \(metadata.jsonl, line 3\): its map broken.png: it cannot be read as an image",
    ),
    (line(2, text=["a"]), "line 3: its text is not one"),
    (line(2, text="x" * 20_000), "line 3: its text is not one"),
    ('{"file_name": "images/2.png", "text": "\\ud800"}', "line 3: its text is not one"),
    (line(2, label="boot"), "line 1: it has no label, but other lines have one"),
    (line(2, label=True), "line 3: its label True is not the name of a class"),
    (line(2, label="a\nb"), "line 3: .* cannot be the name of a class"),
]


@pytest.mark.parametrize(("hostile", "says"), HOSTILE, ids=[says[:60] for _, says in HOSTILE])
def test_a_hostile_line_is_refused_and_named_and_nothing_is_added(
    hostile: Any, says: str, data: Path, folder: Path
) -> None:
    world.image(folder.parent / "outside.png", 1)
    world.image(folder / "large.png", 1, (32, 8))
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    if "link" in says:
        (folder / "link.png").symlink_to(folder / "images" / "2.png")
        (folder / "linked").symlink_to(folder / "images")
    with pytest.raises(DatasetInvalid, match=says):
        imported(data, write(folder, line(0), line(1), hostile))
    assert not (data / "told").exists()
    assert list(data.glob(".incoming-*")) == []


def test_an_empty_file_is_refused(data: Path, folder: Path) -> None:
    with pytest.raises(DatasetInvalid, match=r"metadata\.jsonl: it has no line"):
        imported(data, write(folder, "", ""))


def test_an_image_without_the_map_that_is_asked_for_is_named(data: Path, folder: Path) -> None:
    found = imported(data, write(folder, line(0), {"file_name": "images/1.png"}))
    with pytest.raises(ConfigInvalid, match=r"images/1\.png has no map of depth"):
        load_split(data / found.dvc_path, 16, 3, condition_record("depth"))


def test_edges_need_no_map_and_are_those_of_the_resized_image(data: Path, folder: Path) -> None:
    found = imported(data, write(folder, *({"file_name": f"images/{i}.png"} for i in range(6))))
    split = load_split(data / found.dvc_path, 16, 3, condition_record("canny", 50, 100))
    assert split.train.conditions is not None
    assert split.train.conditions.shape == (len(split.train.labels), 1, 16, 16)
    assert set(split.train.conditions.unique().tolist()) == {0, 255}


def test_a_segmentations_colours_are_not_mixed_when_it_is_resized(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 5:] = (200, 30, 90)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    found = read_square(tmp_path / "map.png", 7, 3, blended=False)
    assert {tuple(pixel) for pixel in found.reshape(3, -1).T.tolist()} == {(0, 0, 0), (200, 30, 90)}

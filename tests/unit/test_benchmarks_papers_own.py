"""The papers' own set-up: their datasets in the layouts they are given out in, their backbones in folders."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from affinery.errors import AffineryError, ConfigInvalid
from benchmarks.papers import __main__ as command
from benchmarks.papers.cells import Cell
from benchmarks.papers.data import pack_folder
from benchmarks.papers.preparing import Own, made
from benchmarks.papers.profiles import PROFILES
from benchmarks.papers.tables import Row, tables
from tests.unit.affinery.test_diffusers_folder import dit_pipeline, text_pipeline
from trainers.packs import Manifest, verify_pack
from trainers.recipe import Recipe

COUNT = 4


def lay(path: Path, kind: str = "JPEG") -> None:
    """A picture unlike all others of its dataset, the same in every run: by it some are kept back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = random.Random("/".join(path.parts[-3:]))
    shades = np.frombuffer(own.randbytes(12 * 10 * 3), np.uint8).reshape(12, 10, 3)
    Image.fromarray(shades).save(path, kind)


def lay_cub(data: Path) -> None:
    folder = data / "CUB_200_2011"
    names = [f"00{1 + i % 2}.Bird_{i % 2}/Bird_{i}.jpg" for i in range(COUNT)]
    for name in names:
        lay(folder / "images" / name)
    (folder / "classes.txt").write_text("1 001.Bird_0\n2 002.Bird_1\n")
    (folder / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (folder / "image_class_labels.txt").write_text("".join(f"{i + 1} {1 + i % 2}\n" for i in range(COUNT)))


def lay_flowers(data: Path) -> None:
    for i in range(1, COUNT + 1):
        lay(data / "flowers-102" / "jpg" / f"image_{i:05d}.jpg")
    savemat(data / "flowers-102" / "imagelabels.mat", {"labels": np.array([[77, 5, 77, 5]], np.uint8)})


def lay_ffhq(data: Path) -> None:
    for i in range(COUNT):
        lay(data / "ffhq" / "images1024x1024" / "00000" / f"{i:05d}.png", "PNG")
    (data / "ffhq" / "ffhq-dataset-v2.json").write_text("{}")


def lay_caltech(data: Path) -> None:
    for name in ("accordion", "yin_yang", "BACKGROUND_Google"):
        for i in (1, 2):
            lay(data / "101_ObjectCategories" / name / f"image_{i:04d}.jpg")


def lay_coco(data: Path) -> None:
    files = [f"{i:012d}.jpg" for i in range(COUNT)]
    for name in files:
        lay(data / "coco" / "train2017" / name)
    captions = [
        {"id": 10 * i + later, "image_id": i, "caption": f" {'again' if later else 'a cat'} {i}\n"}
        for later in (1, 0)
        for i in range(COUNT - 1)
    ]
    images = [{"id": i, "file_name": name} for i, name in enumerate(files)]
    (data / "coco" / "annotations").mkdir()
    raw = json.dumps({"images": images, "annotations": captions})
    (data / "coco" / "annotations" / "captions_train2017.json").write_text(raw)


LAYERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "cub": (lay_cub, ("001.Bird_0", "002.Bird_1")),
    "flowers": (lay_flowers, ("005", "077")),
    "ffhq": (lay_ffhq, ("face",)),
    "caltech": (lay_caltech, ("accordion", "yin_yang")),
    "coco": (lay_coco, ("picture",)),
}


def packed(folder: Path, name: str) -> Manifest:
    LAYERS[name][0](folder / "data")
    manifest = pack_folder(folder / "pack", folder / "data", name)
    return verify_pack(folder / "pack", manifest.digest)


@pytest.mark.parametrize("name", LAYERS)
def test_a_dataset_of_the_papers_is_read_in_the_layout_in_which_it_is_given_out(
    name: str, tmp_path: Path
) -> None:
    manifest = packed(tmp_path, name)
    assert manifest.classes == LAYERS[name][1]
    assert sum(manifest.class_counts) == COUNT
    assert {(image.width, image.height) for image in manifest.images} == {(10, 12)}


def test_a_picture_of_coco_has_the_first_of_its_captions_or_none(tmp_path: Path) -> None:
    manifest = packed(tmp_path, "coco")
    assert [image.text for image in manifest.images] == ["a cat 0", "a cat 1", "a cat 2", None]


def test_a_dataset_that_is_not_whole_is_refused_and_nothing_is_half_written(tmp_path: Path) -> None:
    lay_cub(tmp_path / "data")
    (tmp_path / "data" / "CUB_200_2011" / "images" / "001.Bird_0" / "Bird_2.jpg").unlink()
    with pytest.raises(ConfigInvalid, match=r"Bird_2\.jpg is missing"):
        pack_folder(tmp_path / "packs" / "cub", tmp_path / "data", "cub")
    with pytest.raises(ConfigInvalid, match="flowers-102 is missing"):
        pack_folder(tmp_path / "packs" / "flowers", tmp_path / "data", "flowers")
    assert not (tmp_path / "packs").exists()


def spoil(name: str, folder: Path) -> None:
    if name == "cub":
        (folder / "CUB_200_2011" / "image_class_labels.txt").write_text("1 1\n")
    elif name == "flowers":
        (folder / "flowers-102" / "imagelabels.mat").write_bytes(b"no labels")
    elif name == "ffhq":
        (folder / "ffhq" / "images1024x1024" / "00000" / "00001.png").write_bytes(b"no picture")
    elif name == "caltech":
        (folder / "101_ObjectCategories" / "accordion" / "image_0001.jpg").write_bytes(b"")
    else:
        (folder / "coco" / "annotations" / "captions_train2017.json").write_text('{"images": [')


@pytest.mark.parametrize("name", LAYERS)
def test_a_dataset_with_a_file_that_is_spoilt_is_refused_in_words(name: str, tmp_path: Path) -> None:
    LAYERS[name][0](tmp_path / "data")
    spoil(name, tmp_path / "data")
    with pytest.raises(ConfigInvalid, match=r"is not as|is no picture that can be read"):
        pack_folder(tmp_path / "packs" / name, tmp_path / "data", name)
    assert not [*(tmp_path / "packs").glob("*")]


def test_what_a_mac_lays_beside_pictures_is_no_picture(tmp_path: Path) -> None:
    lay_caltech(tmp_path / "data")
    (tmp_path / "data" / "101_ObjectCategories" / "accordion" / "._image_0001.jpg").write_bytes(b"\0")
    assert sum(pack_folder(tmp_path / "pack", tmp_path / "data", "caltech").class_counts) == COUNT


def test_who_looks_is_asked_before_anything_is_made(tmp_path: Path) -> None:
    for wrong in ("inception=/nope.pth", "nobody"):
        with pytest.raises(AffineryError, match=r"nope|nobody"):
            made(
                tmp_path / "out",
                PROFILES["quick"],
                "quick",
                tables(PROFILES["quick"]),
                set(),
                Own(None, None, wrong),
            )
    assert not (tmp_path / "out").exists()


def test_the_papers_set_up_is_theirs_in_every_number() -> None:
    by_name = {table.name: table for table in tables(PROFILES["paper"])}
    profile = PROFILES["paper"]
    assert (profile.samples, profile.sampler_steps) == (5000, 100)
    recipes = {name: Recipe.from_dict(cell.recipe) for name, cell in one_cell_a_row(by_name["methods"].rows)}
    ours = recipes["DiffScaler (transformer)"]
    assert (ours.steps, ours.batch, ours.lr, ours.class_lr, ours.mask_ratio) == (50_000, 16, 1e-3, 1e-3, 0.5)
    assert {name: recipe.lr for name, recipe in recipes.items() if recipe.lr != 1e-3} == {
        "full fine-tuning": 1e-4
    }
    assert set(by_name["methods"].rows[0].cells) == {"cub", "flowers", "ffhq", "caltech"}
    told = dict(one_cell_a_row(by_name["canny"].rows))["DiffScaler (U-Net)"]
    assert (told.backbone, told.dataset, told.config["rank"]) == ("sd", "coco", 32)
    assert (told.recipe["steps"], told.recipe["batch"]) == (10_000, 4)


def one_cell_a_row(rows: list[Row]) -> list[tuple[str, Cell]]:
    return [(row.name, next(iter(row.cells.values()))[0]) for row in rows]


def test_a_backbone_that_is_not_named_is_asked_for(tmp_path: Path) -> None:
    methods = [table for table in tables(PROFILES["paper"]) if table.name == "methods"]
    with pytest.raises(SystemExit, match="DiT-XL/2, 256 × 256: say where it lies with --dit"):
        made(tmp_path, PROFILES["paper"], "paper", methods, set(), Own())
    assert not (tmp_path / "packs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_papers_set_up_runs_on_stand_ins_of_their_datasets_and_backbones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_cub(tmp_path / "data")
    lay_coco(tmp_path / "data")
    dit_pipeline().save_pretrained(tmp_path / "dit")
    text_pipeline().save_pretrained(tmp_path / "sd")
    short = replace(
        PROFILES["paper"],
        steps=1,
        batch=2,
        samples=4,
        sampler_steps=2,
        seeds=1,
        datasets=("cub",),
        rank=2,
        told_steps=1,
        told_batch=2,
    )
    monkeypatch.setitem(PROFILES, "paper", short)
    words = ["papers", "--out", str(tmp_path / "out"), "--profile", "paper", "--only", "methods", "canny"]
    words += [f"--{name}={tmp_path / name}" for name in ("data", "dit", "sd")]
    monkeypatch.setattr(sys, "argv", words)
    command.main()
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| DiffScaler (transformer) |" in text
    assert "| DiffScaler (U-Net) |" in text
    assert "a folder of the user's" in text
    assert "2 classes; images: non-commercial research" in text

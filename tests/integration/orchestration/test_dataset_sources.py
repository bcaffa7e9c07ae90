"""One dataset in many wrappings is one version; hostile, torn and huge wrappings are refused. Real files."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from orchestration.datasets import ImportedDataset, archives, ensure, import_dataset, init_data
from orchestration.datasets.contact_sheet import contact_sheet
from orchestration.datasets.tables import Columns
from orchestration.errors import DatasetInvalid
from tests.learning_world import image, image_folder
from trainers.packs import MANIFEST, read_manifest

Json = dict[str, Any]


@pytest.fixture(scope="session")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dvc") / "space"
    init_data(root / "data")
    return root


@pytest.fixture
def data(tmp_path: Path, empty_repository: Path) -> Path:
    shutil.copytree(empty_repository, tmp_path / "space", symlinks=True)
    return tmp_path / "space/data"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "birds", "blå sångare", "tit", each=3)


def add(data: Path, source: Path, **options: Any) -> ImportedDataset:
    return import_dataset(data, source, name="set", licence="CC0-1.0", source="made for a test", **options)


def nothing_in(data: Path) -> bool:
    return not (data / "set").exists() and not list(data.glob(".incoming-*"))


def zipped(folder: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{inside}{file.relative_to(folder)}")
    return path


def tarred(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, folder.name)
    return path


def zstandard(folder: Path, path: Path) -> Path:
    tarred(folder, path.with_suffix(""))
    with pyarrow.output_stream(str(path), compression="zstd") as sink:
        sink.write(path.with_suffix("").read_bytes())
    return path


def rows(folder: Path, path: Path, names: list[str], **columns: list[Any]) -> Path:
    """A Parquet file as Hugging Face's datasets write one."""
    files = sorted(folder.rglob("*.png"))
    given = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [sorted({f.parent.name for f in files}).index(file.parent.name) for file in files],
    }
    table = pyarrow.table(given | columns)
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    kept = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(kept), path)
    return path


# --- many wrappings ---


def test_a_folder_its_archives_and_its_own_pack_are_the_same_version(data: Path, images: Path) -> None:
    first = add(data, images)
    ensure(data, first.dvc_path, first.digest)
    elsewhere = images.parent / "packed"
    shutil.copytree(data / first.dvc_path, elsewhere)
    wrapped = [
        zipped(images, images.parent / "flat.zip"),
        zipped(images, images.parent / "nested.zip", "a/b/"),
        tarred(images, images.parent / "plain.tar"),
        tarred(images, images.parent / "birds.tar.gz", "w:gz"),
        tarred(images, images.parent / "birds.without-suffix", "w:xz"),
        zstandard(images, images.parent / "birds.tar.zst"),
        elsewhere,
    ]
    assert [add(data, source).digest for source in wrapped] == [first.digest] * len(wrapped)


def test_a_packs_own_terms_are_kept_unless_others_are_given(data: Path, images: Path) -> None:
    first = add(data, images)
    pack = data / first.dvc_path
    again = import_dataset(data, pack, name="copy")
    assert (again.licence, again.source, again.digest) == ("CC0-1.0", "made for a test", first.digest)
    assert import_dataset(data, pack, name="copy", licence="MIT").licence == "MIT"


def test_captions_and_maps_survive_being_packed_again(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "told"
    for i in range(3):
        image(folder / f"{i}.png", i)
        image(folder / "maps" / f"{i}.png", 50 + i)
    lines = [{"file_name": f"{i}.png", "text": f"nr {i}", "condition": f"maps/{i}.png"} for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first = add(data, folder)
    assert import_dataset(data, data / first.dvc_path, name="copy").digest == first.digest
    (folder / "metadata.jsonl").unlink()
    cells = [f"{line['file_name']},{line['text']},{line['condition']}" for line in lines]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text,condition", *cells]))
    assert add(data, folder).digest == first.digest


def test_parquet_gives_images_classes_and_captions_in_the_order_of_its_schema(
    data: Path, images: Path
) -> None:
    texts = [f"bird {i}" for i in range(6)]
    table = rows(
        images, images.parent / "train-00000-of-00001.parquet", ["zebra finch", "tit", "none"], text=texts
    )
    found = add(data, table)
    assert (found.classes, found.class_counts) == (("zebra finch", "tit"), (3, 3))
    assert any("1 of its 3 classes have no image" in note for note in found.notes)
    packed = read_manifest(data / found.dvc_path).images
    assert sorted(str(entry.text) for entry in packed) == texts


def test_parquet_shards_and_splits_are_told_apart(data: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "hub/data").mkdir(parents=True)
    others = image_folder(tmp_path / "others", "blå sångare", "tit", each=2, seed=5)
    rows(images, tmp_path / "hub/data/train-00000-of-00002.parquet", ["a", "b"])
    rows(others, tmp_path / "hub/data/train-00001-of-00002.parquet", ["a", "b"])
    rows(
        image_folder(tmp_path / "held", "x", "y", each=1, seed=9),
        tmp_path / "hub/data/test-0.parquet",
        ["a", "b"],
    )
    found = add(data, tmp_path / "hub")
    assert found.class_counts == (5, 5)
    assert any("test left out" in note for note in found.notes)
    assert add(data, tmp_path / "hub", split="test").class_counts == (1, 1)
    assert add(data, tmp_path / "hub", split="all").class_counts == (6, 6)


def test_columns_of_other_names_are_named(data: Path, images: Path) -> None:
    table = pyarrow.table(
        {"picture": [file.read_bytes() for file in sorted(images.rglob("*.png"))], "what": list("aabbcc")}
    )
    parquet.write_table(table, images.parent / "odd.parquet")
    with pytest.raises(DatasetInvalid, match=r"none of its columns \(picture, what\).*--image-column"):
        add(data, images.parent / "odd.parquet")
    with pytest.raises(DatasetInvalid, match="has no column 'nothing'"):
        add(data, images.parent / "odd.parquet", columns=Columns(image="nothing"))
    found = add(data, images.parent / "odd.parquet", columns=Columns(image="picture", label="what"))
    assert found.classes == ("a", "b", "c")


def test_an_image_of_a_table_is_refused_by_its_row_in_its_own_file(
    data: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    rows(images, tmp_path / "hub/train-0.parquet", ["a", "b"])
    cells = [{"bytes": file.read_bytes(), "path": None} for file in sorted(images.rglob("*.png"))]
    cells[1] = {"bytes": b"no image at all", "path": None}
    rows(images, tmp_path / "hub/train-1.parquet", ["a", "b"], image=cells)
    with pytest.raises(DatasetInvalid, match=r"train-1\.parquet, row 2") as refused:
        add(data, tmp_path / "hub")
    assert "00000" not in str(refused.value)


def test_what_is_neither_a_file_nor_a_folder_is_refused_and_not_waited_for(data: Path, images: Path) -> None:
    pipe = next(images.rglob("*.png")).with_name("pipe.png")
    os.mkfifo(pipe)
    with pytest.raises(DatasetInvalid, match=r"pipe\.png.*it is neither a file nor a folder"):
        add(data, images)


def test_a_layout_of_splits_gives_the_training_split_and_says_so(data: Path, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "Validation", "test")):
        image_folder(tmp_path / "hub" / split, "x", "y", each=4 - seed, seed=seed)
    found = add(data, tmp_path / "hub")
    assert (found.classes, found.class_counts) == (("x", "y"), (4, 4))
    assert any("test, validation left out" in note for note in found.notes)
    assert add(data, tmp_path / "hub", split="valid").class_counts == (3, 3)
    assert add(data, tmp_path / "hub", split="all").class_counts == (9, 9)
    with pytest.raises(DatasetInvalid, match="it has test, train, validation"):
        add(data, tmp_path / "hub", split="dev2")
    with pytest.raises(DatasetInvalid, match="no split 'test'"):
        add(data, tmp_path / "hub/train", split="test")


def test_classes_that_merely_sound_like_splits_are_classes(data: Path, tmp_path: Path) -> None:
    assert add(data, image_folder(tmp_path / "vehicles", "train", "car")).classes == ("car", "train")


# --- what is bad in them ---


def spoilt(folder: Path) -> Path:
    (folder / "tit/corrupt.png").write_bytes((folder / "tit/0.png").read_bytes()[:50])
    (folder / "tit/empty.png").touch()
    Image.new("L", (1, 30)).save(folder / "tit/thin.png")
    Image.new("LAB", (8, 8)).save(folder / "tit/lab.tif")
    Image.new("L", (8000, 8000)).save(folder / "tit/huge.png")
    return folder


def test_everything_bad_is_told_at_once_by_name_and_number_and_nothing_is_added(
    data: Path, images: Path
) -> None:
    with pytest.raises(DatasetInvalid, match="5 of 11 images cannot be learnt from") as caught:
        add(data, spoilt(images))
    told = str(caught.value)
    for word in ("corrupt.png", "empty.png", "thin.png", "lab.tif", "huge.png", "--skip-bad", "its mode LAB"):
        assert word in told
    assert nothing_in(data)


def test_bad_images_are_left_out_where_that_is_asked_for_and_told(data: Path, images: Path) -> None:
    clean = add(data, images)
    found = add(data, spoilt(images), skip_bad=True)
    assert found.digest == clean.digest
    note = next(note for note in found.notes if "5 images were left out" in note)
    for word in ("1 corrupt", "1 empty", "1 too small", "1 too large", "1 of a mode not learnt"):
        assert word in note


def test_a_class_of_bad_images_alone_is_not_passed_over(data: Path, images: Path) -> None:
    for file in (images / "tit").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DatasetInvalid, match="no image of its class 'tit'"):
        add(data, images, skip_bad=True)
    assert nothing_in(data)


def test_an_uneven_dataset_is_told(data: Path, images: Path) -> None:
    image_folder(images, "many", each=30, seed=3)
    assert any("many has 30 images" in note for note in add(data, images).notes)


# --- hostile archives ---


def _zip_of(*members: tuple[str, bytes], mode: int = 0) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
        return folder / "bad.zip"

    return make


def _tar_of(name: str, kind: bytes, to: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with tarfile.open(folder / "bad.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, to
            archive.addfile(member, io.BytesIO())
        return folder / "bad.tar"

    return make


def _torn(folder: Path) -> Path:
    whole = tarred(image_folder(folder / "torn", "x", "y"), folder / "torn.tar.gz", "w:gz")
    whole.write_bytes(whole.read_bytes()[:-400])
    return whole


def _torn_zip(folder: Path) -> Path:
    whole = zipped(image_folder(folder / "tornzip", "x", "y"), folder / "torn.zip")
    content = bytearray(whole.read_bytes())
    content[60:90] = bytes(30)
    whole.write_bytes(content)
    return whole


def _cut_off(
    packed: Callable[[Path, Path], Path], name: str, size: int | None, spoilt: int | None = None
) -> Callable[[Path], Path]:
    """An archive of which only so many bytes are there, or with a byte that is not what it was."""

    def make(folder: Path) -> Path:
        whole = packed(image_folder(folder / "cut", "x", "y"), folder / name)
        content = bytearray(whole.read_bytes())
        if spoilt is not None:
            content[spoilt] ^= 0xFF
        whole.write_bytes(content[:size])
        return whole

    return make


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_zip_of(("../x/0.png", b"x")), "leads out of the archive"),
        (_zip_of(("/etc/0.png", b"x")), "leads out of the archive"),
        (_zip_of(("C:/x/0.png", b"x")), "leads out of the archive"),
        (_zip_of(("x\\..\\..\\0.png", b"x")), "leads out of the archive"),
        (_zip_of(("x/0.png", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), "is a link or a device"),
        (_zip_of(("x/0.png", b"1"), ("x/0.png", b"2")), "two members are named"),
        (_zip_of(("x.png", b"1"), ("x.png/0.png", b"2")), "both a file and a folder"),
        (_zip_of(("x/" + "a" * 300 + ".png", b"1")), "aaa.* is too long"),
        (_zip_of(("a" * 300 + "/0.png", b"1")), "aaa.* is too long"),
        (_zip_of(("z/" * 3000 + "0.png", b"1")), "z/z.* is too long"),
        (_zip_of(("readme.txt", b"x")), "there is no image in it"),
        (_zip_of(), "there is no image in it"),
        (_tar_of("x/0.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (_tar_of("x/0.png", tarfile.LNKTYPE, "x/1.png"), "is a link or a device"),
        (_tar_of("x/0.png", tarfile.FIFOTYPE), "is a link or a device"),
        (_tar_of("../../0.png", tarfile.REGTYPE), "leads out of the archive"),
        (_tar_of("x/\udcff.png", tarfile.REGTYPE), "is not UTF-8"),
        (_torn, "it is damaged"),
        (_torn_zip, "it is damaged"),
        (_cut_off(zipped, "cut.zip", 300), "begins as an archive does, and is damaged or cut off"),
        (_cut_off(tarred, "cut.tar", 5_120), "nothing whole after 5,120 bytes"),
        (_cut_off(tarred, "cut.tar", 5_300), "nothing whole after 5,120 bytes"),
        (_cut_off(tarred, "damaged.tar", None, 5_130), "nothing whole after 5,120 bytes"),
    ],
)
def test_a_hostile_or_torn_archive_is_refused_and_nothing_is_written_elsewhere(
    data: Path, tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    (tmp_path / "given").mkdir()
    archive = make(tmp_path / "given")
    before = sorted(path for path in tmp_path.rglob("*") if ".dvc" not in path.parts)
    with pytest.raises(DatasetInvalid, match=reason):
        add(data, archive)
    assert nothing_in(data)
    after = sorted(path for path in tmp_path.rglob("*") if ".dvc" not in path.parts)
    assert [path for path in after if path not in before and path.name != ".affinery.lock"] == []


def test_a_bomb_ends_before_it_fills_the_disk(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SMALLEST_LIMIT_BYTES", 1_000_000)
    bomb = _zip_of(*((f"x/{i}.bmp", bytes(600_000)) for i in range(9)))(tmp_path)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DatasetInvalid, match="no archive of images"):
        add(data, bomb)
    assert nothing_in(data)


def test_an_encrypted_archive_and_what_is_no_archive_are_told(
    data: Path, images: Path, tmp_path: Path
) -> None:
    archive = zipped(images, tmp_path / "locked.zip")
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(DatasetInvalid, match="encrypted"):
        add(data, archive)
    (tmp_path / "notes.txt").write_text("nothing to learn")
    for odd in (tmp_path / "notes.txt", tmp_path / "empty.parquet"):
        odd.touch()
        with pytest.raises(DatasetInvalid, match=r"nor Parquet|cannot be read as Parquet"):
            add(data, odd)
    assert nothing_in(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 7}, "does not say what"),
        ({"entry": "../../../x"}, "is not the name of an image|does not say"),
        ({"entry": "0000/no such.png"}, "cannot be read"),
        ({"source_name": 5}, "does not say what"),
    ],
)
def test_a_pack_whose_manifest_lies_is_refused(data: Path, images: Path, change: Json, reason: str) -> None:
    first = add(data, images)
    pack = images.parent / "pack"
    shutil.copytree(data / first.dvc_path, pack)
    (pack / MANIFEST).chmod(0o644)
    record = json.loads((pack / MANIFEST).read_bytes())
    record["images"][0] |= change
    (pack / MANIFEST).unlink()
    (pack / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(DatasetInvalid, match=reason):
        import_dataset(data, pack, name="copy")
    assert not (data / "copy").exists()


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 0, 9], [-7] * 6, [True] * 6, [1.5] * 6])
def test_a_row_of_no_class_is_named(data: Path, images: Path, labels: list[Any]) -> None:
    table = rows(images, images.parent / "t.parquet", ["a", "b"], label=labels)
    with pytest.raises(DatasetInvalid, match=r"row \d: its label"):
        add(data, table)


# --- much ---


def test_many_images_do_not_need_the_memory_of_many_images(data: Path, tmp_path: Path) -> None:
    (tmp_path / "many/x").mkdir(parents=True)
    for i in range(160):
        Image.frombytes("RGB", (256, 256), os.urandom(3 * 256 * 256)).save(tmp_path / f"many/x/{i}.bmp")
    archive = zipped(tmp_path / "many", tmp_path / "many.zip")
    add(data, image_folder(tmp_path / "warm", "x"))  # imports what is imported once
    tracemalloc.start()
    try:
        add(data, archive)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert archive.stat().st_size > 30_000_000
    assert peak < 8_000_000


def test_a_contact_sheet_shows_every_class(data: Path, images: Path) -> None:
    Image.new("I;16", (9, 9), 60_000).save(images / "tit/deep.png")
    Image.new("RGBA", (9, 30), (255, 0, 0, 128)).save(images / "tit/clear.png")
    found = add(data, images)
    sheet = Image.open(io.BytesIO(contact_sheet(ensure(data, found.dvc_path, found.digest), "set@1")))
    assert sheet.size[1] > 2 * 64
    first_row = sheet.crop((180, 30, sheet.width, 94))
    assert len(set(first_row.convert("L").tobytes())) > 10


def test_an_archive_without_images_is_called_by_its_own_name_and_not_by_where_it_was_unpacked(
    data: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(DatasetInvalid, match="there is no image in it") as caught:
        add(data, empty)
    assert caught.value.args[0] == str(empty)
    assert ".incoming" not in str(caught.value)


def test_parquet_whose_schema_names_no_classes_is_told_of_none_that_are_missing(
    data: Path, images: Path
) -> None:
    path = images.parent / "bare.parquet"
    content = sorted(images.rglob("*.png"))[0].read_bytes()
    parquet.write_table(pyarrow.table({"image": [content], "label": ["x"]}), path)
    assert not any("left out" in note for note in add(data, path).notes)

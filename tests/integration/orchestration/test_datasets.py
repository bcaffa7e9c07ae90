"""Folders of images become pinned versions, or one clear error and nothing. Real DVC, kills, full disks."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestration.datasets import ImportedDataset, ensure, import_dataset, init_data
from orchestration.errors import DatasetInvalid, DatasetUnavailable, DataUnwritable
from registry.errors import NameInvalid
from tests.learning_world import image, image_folder
from trainers.errors import DatasetChanged
from trainers.packs import read_manifest

spawned = multiprocessing.get_context("spawn")


@pytest.fixture(scope="session")
def empty_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace's DVC repository before the first dataset."""
    root = tmp_path_factory.mktemp("dvc") / "space"
    init_data(root / "data")
    return root


@pytest.fixture
def data(tmp_path: Path, empty_data: Path) -> Path:
    shutil.copytree(empty_data, tmp_path / "space", symlinks=True)
    (tmp_path / "space/data/.dvc/affinery").unlink()
    init_data(tmp_path / "space/data")  # the remote's place is absolute
    return tmp_path / "space/data"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "my images", "x", "y")


def add(data: Path, folder: Path, name: str = "set") -> ImportedDataset:
    return import_dataset(data, folder, name=name, licence="CC0-1.0", source="made for a test")


def packs_in(data: Path) -> list[str]:
    """What stands in the data folder beside DVC's own."""
    return sorted(
        path.relative_to(data).as_posix()
        for path in data.rglob("*")
        if path.is_file()
        and ".dvc/" not in path.relative_to(data).as_posix()
        and path.name not in (".affinery.lock", ".dvcignore")
    )


# --- what is taken in ---


def test_a_folder_of_classes_becomes_a_pinned_version(data: Path, images: Path) -> None:
    found = add(data, images)
    assert (found.classes, found.class_counts, found.image_count) == (("x", "y"), (8, 8), 16)
    pack = ensure(data, found.dvc_path, found.digest)
    assert hashlib.sha256((pack / "manifest.json").read_bytes()).hexdigest() == found.digest
    assert found.dvc_md5.endswith(".dir")
    assert found.dvc_md5 in (pack.parent / f"{pack.name}.dvc").read_text()
    assert found.size_bytes == sum(path.stat().st_size for path in pack.iterdir())


def test_the_same_folder_twice_is_the_same_version(data: Path, images: Path) -> None:
    first = add(data, images)
    before = {path: (data / path).read_bytes() for path in packs_in(data)}
    assert add(data, images) == first
    assert {path: (data / path).read_bytes() for path in packs_in(data)} == before


def test_a_copy_of_the_folder_with_other_times_is_the_same_version(
    data: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        os.utime(path, (1, 1))
    assert add(data, tmp_path / "copy").digest == add(data, images).digest


def test_a_folder_with_one_more_image_is_another_version_and_the_first_stays(
    data: Path, images: Path
) -> None:
    first = add(data, images)
    image(images / "x/new.png", 77)
    second = add(data, images)
    assert second.digest != first.digest
    for each in (first, second):
        ensure(data, each.dvc_path, each.digest)


def test_images_without_class_folders_are_one_dataset_without_classes(data: Path, tmp_path: Path) -> None:
    found = add(data, image_folder(tmp_path / "flat"))
    assert (found.classes, found.class_counts) == (("all",), (8,))
    assert any("without classes" in note for note in found.notes)


def test_one_class_is_enough_and_is_told(data: Path, tmp_path: Path) -> None:
    found = add(data, image_folder(tmp_path / "one", "only"))
    assert found.classes == ("only",)
    assert any("one class" in note for note in found.notes)


def test_images_of_three_sizes_and_modes_are_taken_in_and_told(data: Path, images: Path) -> None:
    image(images / "x/wide.jpg", 1, (40, 16), "RGB")
    image(images / "y/tall.webp", 2, (9, 33), "RGBA")
    found = add(data, images)
    assert any("images of 3 sizes" in note for note in found.notes)
    modes = {entry.mode for entry in read_manifest(data / found.dvc_path).images}
    assert {"L", "RGB"} <= modes


def test_names_with_spaces_and_of_any_script_are_kept(data: Path, tmp_path: Path) -> None:
    names = ("with space", "été", "数字", "a'b\"c$(d)")
    found = add(data, image_folder(tmp_path / "ein Ordner", *names, each=2), name="數 é")
    assert set(found.classes) == set(names)
    ensure(data, found.dvc_path, found.digest)


def test_duplicates_count_once_and_the_same_image_in_two_classes_is_told(data: Path, images: Path) -> None:
    shutil.copy(images / "x/0.png", images / "x/again.png")
    shutil.copy(images / "x/1.png", images / "y/other.png")
    found = add(data, images)
    assert found.class_counts == (8, 9)
    assert any("1 image was there twice" in note for note in found.notes)
    assert any("more than one class" in note for note in found.notes)


def test_hidden_files_and_other_files_are_left_out_and_the_others_told(data: Path, images: Path) -> None:
    (images / ".DS_Store").write_text("x")
    (images / "x/.thumb.png").write_text("x")
    (images / "x/notes.txt").write_text("x")
    (images / "empty").mkdir()
    found = add(data, images)
    assert found.image_count == 16
    assert any(note.startswith("2 other files were left out") and "notes.txt" in note for note in found.notes)


# --- what is refused ---


def _corrupt(folder: Path) -> Path:
    path = folder / "x/0.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


def _no_image(folder: Path) -> Path:
    path = folder / "y/3.png"
    path.write_text("this is text")
    return path


def _empty(folder: Path) -> Path:
    (folder / "x/0.png").write_bytes(b"")
    return folder / "x/0.png"


def _tiny(folder: Path) -> Path:
    Image.new("L", (1, 9)).save(folder / "x/0.png")
    return folder / "x/0.png"


def _promising(side: int) -> Callable[[Path], Path]:
    """A few bytes whose header promises side × side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def spoil(folder: Path) -> Path:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
        (folder / "x/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
        return folder / "x/0.png"

    return spoil


def _linked_file(folder: Path) -> Path:
    (folder / "x/link.png").symlink_to(folder / "y/0.png")
    return folder / "x/link.png"


def _linked_folder(folder: Path) -> Path:
    (folder / "z").symlink_to(folder / "x")
    return folder / "z"


def _postscript(folder: Path) -> Path:
    """What Pillow, asked without formats, hands to Ghostscript."""
    told = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (folder / "x/drawn.png").write_bytes(told)
    return folder / "x/drawn.png"


def _of_another_format(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "x/other.png", "PPM")
    return folder / "x/other.png"


def _both(folder: Path) -> Path:
    return image(folder / "beside.png", 5)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_corrupt, "cannot be read as an image"),
        (_no_image, "cannot be read as an image"),
        (_postscript, "it is none of PNG, JPEG, WEBP, BMP, GIF, TIFF"),
        (_of_another_format, "it is none of PNG, JPEG, WEBP, BMP, GIF, TIFF"),
        (_empty, "it is empty"),
        (_tiny, "too few to learn from"),
        (_promising(9_000), "9000 × 9000 pixels are over 50,000,000"),
        (_promising(60_000), "pixels are over 50,000,000"),
        (_linked_file, "it is a link"),
        (_linked_folder, "it is a link"),
        (_both, "both class folders and images beside them"),
    ],
)
def test_one_bad_file_is_named_and_nothing_is_added(
    data: Path, images: Path, spoil: Callable[[Path], Path], reason: str
) -> None:
    bad = spoil(images)
    with pytest.raises(DatasetInvalid, match=reason) as caught:
        add(data, images)
    assert bad.name in str(caught.value)
    assert packs_in(data) == []


@pytest.mark.parametrize("kind", ["nothing", "a file", "empty", "text only"])
def test_what_is_no_folder_of_images_is_refused(data: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "given"
    if kind == "a file":
        folder.write_text("x")
    elif kind != "nothing":
        (folder / "x").mkdir(parents=True)
    if kind == "text only":
        (folder / "x/readme.txt").write_text("x")
    reason = {"nothing": "no such folder", "a file": "not a folder"}.get(kind, "no image in it")
    with pytest.raises(DatasetInvalid, match=reason):
        add(data, folder)
    assert packs_in(data) == []


def test_class_names_that_obey_a_terminal_or_are_equal_in_normal_form_are_refused(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(NameInvalid, match=r"U\+000A"):
        add(data, image_folder(tmp_path / "newline", "a\nb", "c"))
    with pytest.raises(NameInvalid, match=r"U\+202E"):
        add(data, image_folder(tmp_path / "turned", "a\u202eb", "c"))
    with pytest.raises(DatasetInvalid, match="normal form"):
        add(data, image_folder(tmp_path / "forms", "e\u0301t\u00e9", "\u00e9t\u00e9"))
    assert packs_in(data) == []


def test_class_names_made_of_dots_stay_inside_the_pack(data: Path, tmp_path: Path) -> None:
    names = ("x..", "..  ..", "~", "a..b")
    folder = image_folder(tmp_path / "dots", *(name for name in names), each=2)
    found = add(data, folder)
    with zipfile.ZipFile(data / found.dvc_path / "images.zip") as archive:
        assert all(name[:4].isdigit() and ".." not in name for name in archive.namelist())


# --- changed after it was pinned ---


def _zip_with(pack: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    with zipfile.ZipFile(pack / "images.zip") as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    (pack / "images.zip").unlink()
    with zipfile.ZipFile(pack / "images.zip", "w") as archive:
        for info, content in entries:
            if (changed := change(info.filename, content)) is not None:
                archive.writestr(info, changed)


def _edited_byte(pack: Path) -> None:
    content = bytearray((pack / "images.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (pack / "images.zip").unlink()
    (pack / "images.zip").write_bytes(content)


def _edited_manifest(pack: Path) -> None:
    content = (pack / "manifest.json").read_bytes()
    (pack / "manifest.json").unlink()
    (pack / "manifest.json").write_bytes(content.replace(b'"x"', b'"z"'))


def _replaced_image(pack: Path) -> None:
    _zip_with(pack, lambda name, body: body[:-1] + b"!" if name == "0001/000002.png" else body)


def _removed_image(pack: Path) -> None:
    _zip_with(pack, lambda name, body: None if name == "0000/000000.png" else body)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_edited_byte, r"y/1.png \(0001/000001.png\) was changed"),
        (_edited_manifest, "manifest.json was edited"),
        (_replaced_image, r"y/2.png \(0001/000002.png\) was changed"),
        (_removed_image, r"x/0.png \(0000/000000.png\) was taken out"),
    ],
)
def test_a_pack_that_was_changed_is_refused_and_the_change_named(
    data: Path, images: Path, change: Callable[[Path], None], named: str
) -> None:
    found = add(data, images)
    change(data / found.dvc_path)
    with pytest.raises(DatasetChanged, match=named) as caught:
        ensure(data, found.dvc_path, found.digest)
    assert "Training refuses it" in str(caught.value)


@pytest.mark.parametrize("gone", [["images.zip"], ["manifest.json"], ["images.zip", "manifest.json"]])
def test_a_file_that_is_merely_missing_comes_back(data: Path, images: Path, gone: list[str]) -> None:
    found = add(data, images)
    for name in gone:
        (data / found.dvc_path / name).unlink()
    ensure(data, found.dvc_path, found.digest)
    shutil.rmtree(data / found.dvc_path)
    ensure(data, found.dvc_path, found.digest)


def test_a_missing_pack_comes_back_from_the_remote_where_the_cache_is_gone_or_tampered_with(
    data: Path, images: Path
) -> None:
    found = add(data, images)
    shutil.rmtree(data / found.dvc_path)
    shutil.rmtree(data / ".dvc/cache")
    ensure(data, found.dvc_path, found.digest)
    for path in (data / ".dvc/cache").rglob("*"):
        if path.is_file() and path.suffix != ".dir":
            path.chmod(0o644)
            path.write_bytes(b"not what it was")
    shutil.rmtree(data / found.dvc_path)
    ensure(data, found.dvc_path, found.digest)


def test_a_pack_that_is_nowhere_any_more_is_told_clearly(data: Path, images: Path) -> None:
    found = add(data, images)
    for gone in (data / found.dvc_path, data / ".dvc/cache", data.parent / "dvc-remote"):
        shutil.rmtree(gone)
    with pytest.raises(DatasetUnavailable, match="DVC in"):
        ensure(data, found.dvc_path, found.digest)


def test_importing_the_folder_again_mends_a_pack_that_was_changed(data: Path, images: Path) -> None:
    found = add(data, images)
    _edited_byte(data / found.dvc_path)
    assert add(data, images) == found
    ensure(data, found.dvc_path, found.digest)


# --- kills, crowds, full and read-only disks ---


def _import(data: Path, folder: Path, name: str, answers: Any) -> None:
    answers.put((name, add(data, folder, name).digest))


def test_two_imports_at_once_are_both_done(data: Path, tmp_path: Path) -> None:
    answers = spawned.Queue()
    both = []
    for seed, name in enumerate(("one", "two", "one")):
        folder = image_folder(tmp_path / f"folder {name}", "x", "y", seed=seed % 2)
        both.append(spawned.Process(target=_import, args=(data, folder, name, answers)))
    for each in both:
        each.start()
    found = [answers.get(timeout=120) for _ in both]
    for each in both:
        each.join()
    assert len(set(found)) == 2
    for name, digest in found:
        ensure(data, f"{name}/{digest[:12]}", digest)


def _import_and_die(data: Path, folder: Path, where: str) -> None:
    """Imports, and is killed outright at a place: while packing, before DVC, or while DVC is at work."""
    from orchestration.datasets import repository

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "packing":
        import_dataset(data, folder, name="set", on_progress=lambda _, done, __: die() if done == 9 else None)
    elif where == "before DVC":
        repository.pin = die
        add(data, folder)
    else:
        from dvc.repo import Repo

        Repo.push = die
        add(data, folder)


@pytest.mark.parametrize("where", ["packing", "before DVC", "after DVC's add"])
def test_an_import_that_is_killed_leaves_nothing_that_hinders_the_next(
    data: Path, images: Path, where: str
) -> None:
    child = spawned.Process(target=_import_and_die, args=(data, images, where))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    other = add(data, images, "other")
    assert list(data.glob(".incoming-*")) == []
    found = add(data, images)
    for each in (found, other):
        ensure(data, each.dvc_path, each.digest)
        shutil.rmtree(data / each.dvc_path)
        ensure(data, each.dvc_path, each.digest)


@contextmanager
def files_no_longer_than(size_bytes: int) -> Iterator[None]:
    """As on a full disk, a write past this size fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_on_a_full_disk_nothing_is_added_and_the_reason_is_told(data: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "large", "x", "y", each=40)
    with files_no_longer_than(4096), pytest.raises(DataUnwritable, match="Make room"):
        add(data, folder)
    assert packs_in(data) == []
    assert list(data.glob(".incoming-*")) == []
    found = add(data, folder)
    ensure(data, found.dvc_path, found.digest)


def test_a_disk_that_fills_up_while_dvc_copies_leaves_no_pack_behind(
    data: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    whole = Repo.add

    def add_on_a_full_disk(*given: Any, **named: Any) -> Any:
        with files_no_longer_than(64):
            return whole(*given, **named)

    monkeypatch.setattr(Repo, "add", add_on_a_full_disk)
    with pytest.raises((DataUnwritable, DatasetUnavailable)):
        add(data, images)
    assert packs_in(data) == []
    monkeypatch.undo()
    found = add(data, images)
    ensure(data, found.dvc_path, found.digest)


def _as_nobody(data: Path, folder: Path, answers: Any) -> None:
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    os.environ["HOME"] = tempfile.gettempdir()
    try:
        add(data, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must see it
        answers.put((type(error).__name__, str(error)))


def test_a_read_only_data_folder_is_one_clear_error(empty_data: Path) -> None:
    root = Path(tempfile.mkdtemp(prefix="affinery-ro-"))
    try:
        shutil.copytree(empty_data, root / "space")
        image_folder(root / "images", "x", "y")
        for path in (root, *root.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        answers = spawned.Queue()
        child = spawned.Process(target=_as_nobody, args=(root / "space/data", root / "images", answers))
        child.start()
        name, text = answers.get(timeout=60)
        child.join()
    finally:
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(root)
    assert name == "DataUnwritable"
    assert "Permission denied" in text
    assert "allow writing there" in text


def test_making_the_repository_again_changes_nothing_and_says_nothing(
    data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = (data / ".dvc/config").read_text()
    init_data(data)
    init_data(data.parent / "more/data")
    assert (data / ".dvc/config").read_text() == config
    assert json.dumps(capfd.readouterr().out) == '""'

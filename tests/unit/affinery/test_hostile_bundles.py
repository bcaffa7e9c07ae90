"""Bundles made to do harm: each is refused with one error that says what is wrong, and nothing is executed.

Whoever makes one may give every file its right digest, so most here are sealed anew after they were changed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from affinery import tensor_files
from affinery.bundle import load_bundle
from affinery.errors import UserError
from tests.shipped import write_both

ADAPTER, BACKBONE = "adapters/0.safetensors", "backbone.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def write(bundle: Path, content: dict[str, Any]) -> None:
    (bundle / "manifest.json").write_text(json.dumps(content))


def sealed(bundle: Path) -> None:
    """Every digest right again."""
    content = manifest(bundle)
    content["files"] = {name: tensor_files.sha256_file(bundle / name) for name in content["files"]}
    write(bundle, content)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    body = path.read_bytes()
    (length,) = struct.unpack("<Q", body[:8])
    return json.loads(body[8 : 8 + length]), body[8 + length :]


def rewritten(bundle: Path, name: str, change: Callable[[dict[str, Any]], object], text: str = "") -> None:
    """Another header before the same bytes. text: the header as it stands, where JSON cannot be had of it."""
    header, body = header_of(bundle / name)
    change(header)
    raw = (text or json.dumps(header)).encode()
    (bundle / name).write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    sealed(bundle)


def record(header: dict[str, Any], key: str, **changes: Any) -> None:
    """Changes what a file's metadata says of it."""
    said = json.loads(header["__metadata__"][key])
    header["__metadata__"][key] = json.dumps(said | changes)


def adapter_record(**changes: Any) -> Callable[[Path], None]:
    return lambda bundle: rewritten(bundle, ADAPTER, lambda h: record(h, "affinery.adapter", **changes))


def spec(**changes: Any) -> Callable[[Path], None]:
    return lambda bundle: rewritten(bundle, BACKBONE, lambda h: record(h, "affinery.backbone", **changes))


def said(**changes: Any) -> Callable[[Path], None]:
    return lambda bundle: write(bundle, manifest(bundle) | changes)


def task(**changes: Any) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        content = manifest(bundle)
        content["tasks"][0] |= changes
        write(bundle, content)

    return change


def raw(text: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / "manifest.json").write_text(text)

    return change


def first_tensor(**changes: Any) -> Callable[[Path], None]:
    def change(header: dict[str, Any]) -> None:
        header[min(name for name in header if name != "__metadata__")] |= changes

    return lambda bundle: rewritten(bundle, ADAPTER, change)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Another thing under a file's name."""

    def change(bundle: Path) -> None:
        (bundle / name).unlink()
        make(bundle / name)

    return change


def looped(bundle: Path) -> None:
    shutil.rmtree(bundle / "adapters")
    (bundle / "adapters").symlink_to("adapters")


def truncated(bundle: Path) -> None:
    path = bundle / ADAPTER
    path.write_bytes(path.read_bytes()[:-40])
    sealed(bundle)


def longer(bundle: Path) -> None:
    path = bundle / ADAPTER
    path.write_bytes(path.read_bytes() + b"PK\x03\x04")
    sealed(bundle)


def header_claims(length: int) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        body = (bundle / ADAPTER).read_bytes()
        (bundle / ADAPTER).write_bytes(struct.pack("<Q", length) + body[8:])
        sealed(bundle)

    return change


def not_finite(bundle: Path) -> None:
    path = bundle / ADAPTER
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    sealed(bundle)


def emptied(bundle: Path) -> None:
    (bundle / ADAPTER).write_bytes(b"")
    sealed(bundle)


def exchanged(bundle: Path) -> None:
    """Both files are right, and so are their digests; they only changed places."""
    first, second = bundle / ADAPTER, bundle / "adapters/1.safetensors"
    aside = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(aside)
    sealed(bundle)


def nested(bundle: Path) -> None:
    shutil.copytree(bundle, bundle.parent / "inner")
    (bundle.parent / "inner").rename(bundle / "inner")


def pickled(bundle: Path) -> None:
    (bundle / "adapters" / "model.pkl").write_bytes(b"\x80\x04.")


def header_twice(bundle: Path) -> None:
    header, _ = header_of(bundle / ADAPTER)
    text = json.dumps(header)
    rewritten(bundle, ADAPTER, lambda _: None, '{"__metadata__":{},' + text[1:])


def deep(bundle: Path) -> None:
    rewritten(bundle, ADAPTER, lambda _: None, "[" * 100_000)


def huge(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(60_000_000)


def merges(**weights: Any) -> Callable[[Path], None]:
    return said(merges={"sum": weights})


BEYOND = (
    '{"schema": 1, "name": "x", "backbone": {}, "tasks": [], "files": {}, '
    '"merges": {"sum": {"digits": {"weight": 1e999}}}}'
)
HOSTILE: dict[str, Callable[[Path], None]] = {
    "paths: up": task(file="../0.safetensors"),
    "paths: absolute": task(file="/etc/passwd"),
    "paths: backslashes": task(golden="..\\..\\0.safetensors"),
    "paths: look-alike letters": task(file="аdapters/0.safetensors"),
    "paths: a manifest as a file": said(files={"manifest.json": "0" * 64}),
    "links: to itself": looped,
    "links: the manifest": replaced("manifest.json", lambda path: path.symlink_to("/etc/passwd")),
    "links: dangling": replaced(ADAPTER, lambda path: path.symlink_to("nowhere")),
    "links: the backbone": replaced(BACKBONE, lambda path: path.symlink_to(ADAPTER)),
    "kinds: a folder": replaced(ADAPTER, Path.mkdir),
    "kinds: a pipe": replaced(ADAPTER, os.mkfifo),
    "kinds: a pipe as the manifest": replaced("manifest.json", os.mkfifo),
    "files: empty": emptied,
    "files: exchanged": exchanged,
    "files: one more, a pickle": pickled,
    "files: another bundle": nested,
    "files: cut off": truncated,
    "files: bytes behind the end": longer,
    "json: a key twice": raw('{"schema": 1, "files": {}, "files": {}}'),
    "json: NaN": merges(digits={"weight": float("nan")}),
    "json: a weight beyond floats": raw(BEYOND),
    "json: a weight of four hundred digits": merges(digits={"weight": 10**400}, letters={"weight": 1}),
    "json: a number of five thousand digits": raw('{"schema": 1' + "0" * 5000 + "}"),
    "json: no text": raw("\x00\x01\x02"),
    "json: huge": huge,
    "json: deep, in a header": deep,
    "json: a key twice, in a header": header_twice,
    "header: longer than the file": header_claims(2**40),
    "header: longer than numbers are": header_claims(2**64 - 1),
    "shapes: huge": first_tensor(shape=[2**40, 2**20]),
    "shapes: negative": first_tensor(shape=[-1, -4]),
    "shapes: no numbers": first_tensor(shape=["4", "4"]),
    "shapes: of four hundred digits": first_tensor(shape=[10**400]),
    "shapes: a place outside": first_tensor(data_offsets=[-8, 2**62]),
    "types: unknown": first_tensor(dtype="PICKLE"),
    "values: not finite": not_finite,
    "adapter: rows of four hundred digits": adapter_record(block=[10**400, 10**400 + 2]),
    "adapter: rows of the backbone": adapter_record(block=[0, 2]),
    "adapter: a rank of four hundred digits": adapter_record(config={"rank": 10**400}),
    "adapter: a rank beyond memory": adapter_record(config={"rank": 2**50}),
    "adapter: a kind that is a path": adapter_record(kind="../../os"),
    "adapter: a kind that is a module": adapter_record(kind="contract"),
    "adapter: a size beyond memory": adapter_record(image_size=2**40),
    "adapter: half a character": adapter_record(class_names=["digits 0", "\ud800"]),
    "backbone: an architecture that is a module": spec(arch="files"),
    "backbone: an architecture that is a path": spec(arch="../contract"),
    "backbone: a width beyond memory": spec(config={"width": 2**60, "depth": 2, "heads": 2, "patch": 4}),
    "backbone: blocks without end": spec(config={"width": 16, "depth": 10**9, "heads": 2, "patch": 4}),
    "backbone: stages without end": spec(arch="unet", config={"layers_per_block": 10**9}),
    "backbone: half a character": spec(class_names=["coat", "bag", "\ud800"]),
    "backbone: another fingerprint": said(backbone={"file": BACKBONE, "fingerprint": "0" * 64}),
    "tasks: an escape sequence": task(name="\x1b]0;owned\x07"),
    "tasks: half a character": task(name="\ud800"),
    "tasks: rows that are text": task(block="45"),
    "tasks: classes without end": task(class_names=["digits 0"] * 100_000),
    "sums: more than anybody needs": said(merges={f"{i}": {"digits": {"weight": 1}} for i in range(99_999)}),
    "sums: of themselves": said(merges={"sum": {"sum": {"weight": 1}}}),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_bundle_made_to_do_harm_is_refused_in_one_sentence(what: str, bundle: Path) -> None:
    HOSTILE[what](bundle)
    with pytest.raises(UserError) as refused:
        load_bundle(bundle)
    message = str(refused.value)
    assert refused.value.exit_code == 2
    assert message.isprintable(), message
    assert len(message) < 1000


def test_hidden_files_that_tools_leave_are_let_be(bundle: Path) -> None:
    for name in (".gitattributes", ".DS_Store", ".cache/huggingface/x"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("")
    assert list(load_bundle(bundle).slots) == ["digits", "letters"]

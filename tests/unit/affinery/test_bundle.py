"""A bundle is whole under its name or not there, and says which of its files is not what was exported."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

import affinery
from affinery import tensor_files
from affinery.adapters.files import adapter_bytes
from affinery.backbones.files import inspect_backbone, save_backbone
from affinery.bundle import Manifest, load_bundle, read_manifest, verify_bundle
from affinery.bundle_writing import BundleTask, write_bundle
from affinery.composed import ComposedModel
from affinery.errors import (
    AdapterBackboneMismatch,
    AdapterFileInvalid,
    BundleInvalid,
    ConfigInvalid,
    UserError,
)
from affinery.merge_recipe import Weight
from affinery.signing import sign
from tests import tiny_models as tiny
from trainers.replay import golden_bytes


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered backbone, two adapters and the golden images of the first."""
    folder = tmp_path_factory.mktemp("parts")
    save_backbone(tiny.backbone(), folder / "backbone")
    found = inspect_backbone(folder / "backbone").fingerprint
    tasks = [tiny.meta("digits", (4, 6), 2, backbone=found), tiny.meta("letters", (6, 9), 3, backbone=found)]
    for seed, record in enumerate(tasks):
        (folder / record.task).write_bytes(adapter_bytes(tiny.adapter(record, seed + 1)))
    model = ComposedModel(tiny.backbone(), found)
    model.load(tiny.adapter(tasks[0], 1))
    (folder / "golden").write_bytes(golden_bytes(model, "digits", "here"))
    return folder


def export(parts: Path, folder: Path, name: str = "mine") -> Manifest:
    fingerprint = inspect_backbone(parts / "backbone").fingerprint
    tasks = [
        BundleTask(
            "digits",
            "digits@1",
            "affiner",
            ("digits 0", "digits 1"),
            (4, 6),
            parts / "digits",
            parts / "golden",
            "digits@1",
        ),
        BundleTask(
            "letters",
            "letters@1",
            "affiner",
            ("letters 0", "letters 1", "letters 2"),
            (6, 9),
            parts / "letters",
            None,
            "letters@1",
        ),
    ]
    backbone = {"ref": "tiny@1", "fingerprint": fingerprint}
    return write_bundle(folder, name, parts / "backbone", backbone, tasks, "# Modell für alle\n")


@pytest.fixture
def bundle(parts: Path, tmp_path: Path) -> Path:
    export(parts, tmp_path / "bundle")
    return tmp_path / "bundle"


FILES = [
    "README.md",
    "adapters/0.safetensors",
    "adapters/1.safetensors",
    "backbone.safetensors",
    "golden/0.safetensors",
    "manifest.json",
    "samples.png",
]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def edit_manifest(bundle: Path, **changes: Any) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleInvalid) as refused:
        load_bundle(bundle)
    return str(refused.value)


def test_a_bundle_holds_its_files_and_nothing_else(bundle: Path) -> None:
    assert files_of(bundle) == FILES
    assert names_in(bundle.parent) == ["bundle"]
    manifest = verify_bundle(bundle)
    assert [task["name"] for task in manifest.tasks] == ["digits", "letters"]
    assert sorted(manifest.files) == [name for name in FILES if name != "manifest.json"]


def test_a_loaded_bundle_draws_what_was_exported(bundle: Path, parts: Path) -> None:
    model = affinery.load(bundle)
    assert list(model.slots) == ["digits", "letters"]
    assert adapter_bytes(model.adapter("letters")) == (parts / "letters").read_bytes()
    fingerprint = inspect_backbone(parts / "backbone").fingerprint
    own = ComposedModel(tiny.backbone(), fingerprint)
    own.load(tiny.adapter(tiny.meta("digits", (4, 6), 2, backbone=fingerprint), 1))
    assert torch.equal(affinery.draw(model, "digits", 1), affinery.draw(own, "digits", 1))


def test_the_same_export_twice_keeps_the_first(bundle: Path, parts: Path) -> None:
    before = {name: (bundle / name).stat().st_mtime_ns for name in FILES}
    again = export(parts, bundle)
    assert again.digest == read_manifest(bundle).digest
    assert {name: (bundle / name).stat().st_mtime_ns for name in FILES} == before
    assert names_in(bundle.parent) == ["bundle"]


def test_the_same_export_elsewhere_has_the_same_bytes(bundle: Path, parts: Path, tmp_path: Path) -> None:
    export(parts, tmp_path / "deep" / "er" / "v1.0 final")
    assert all(
        (bundle / name).read_bytes() == (tmp_path / "deep" / "er" / "v1.0 final" / name).read_bytes()
        for name in FILES
    )


def test_an_export_over_a_damaged_bundle_says_what_is_damaged(bundle: Path, parts: Path) -> None:
    (bundle / "README.md").write_text("other")
    with pytest.raises(BundleInvalid, match=r"README\.md has been changed"):
        export(parts, bundle)


def in_the_way(path: Path, what: str) -> None:
    if what == "a file":
        path.write_text("mine")
    elif what == "a folder":
        path.mkdir()
        (path / "diary.txt").write_text("mine")
    elif what == "a dangling link":
        path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("what", ["a file", "a folder", "a dangling link"])
def test_another_thing_in_the_way_is_left_alone(what: str, parts: Path, tmp_path: Path) -> None:
    in_the_way(tmp_path / "bundle", what)
    with pytest.raises(ConfigInvalid, match="something else is there already"):
        export(parts, tmp_path / "bundle")
    assert names_in(tmp_path) == ["bundle"]
    if what == "a file":
        assert (tmp_path / "bundle").read_text() == "mine"
    if what == "a folder":
        assert files_of(tmp_path / "bundle") == ["diary.txt"]


def test_another_bundle_in_the_way_is_left_alone(bundle: Path, parts: Path) -> None:
    digest = read_manifest(bundle).digest
    with pytest.raises(ConfigInvalid, match="something else is there already"):
        export(parts, bundle, name="another")
    assert verify_bundle(bundle).digest == digest


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_one_changed_byte_in_any_file_is_named(name: str, bundle: Path) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert f"{name} has been changed" in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    assert name in refusal(bundle)


def test_two_adapters_that_changed_places_are_found(bundle: Path) -> None:
    first, second = bundle / "adapters/0.safetensors", bundle / "adapters/1.safetensors"
    first.rename(bundle / "x")
    second.rename(first)
    (bundle / "x").rename(second)
    assert "adapters/0.safetensors has been changed" in refusal(bundle)


def test_a_manifest_whose_tasks_changed_places_is_found(bundle: Path) -> None:
    tasks = json.loads((bundle / "manifest.json").read_text())["tasks"]
    tasks[0]["file"], tasks[1]["file"] = tasks[1]["file"], tasks[0]["file"]
    edit_manifest(bundle, tasks=tasks)
    assert "adapters/1.safetensors has other classes than the manifest says" in refusal(bundle)


def test_a_manifest_of_other_class_names_is_found(bundle: Path) -> None:
    tasks = json.loads((bundle / "manifest.json").read_text())["tasks"]
    tasks[0]["class_names"] = ["digits 1", "digits 0"]
    edit_manifest(bundle, tasks=tasks)
    assert "other classes than the manifest says" in refusal(bundle)


def test_a_backbone_exchanged_together_with_its_digest_is_found(bundle: Path) -> None:
    save_backbone(tiny.backbone(seed=9), bundle / "backbone.safetensors")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(
        bundle,
        files=files | {"backbone.safetensors": tensor_files.sha256_file(bundle / "backbone.safetensors")},
    )
    assert "its backbone is not the one that the manifest names" in refusal(bundle)
    other = {
        "file": "backbone.safetensors",
        "fingerprint": inspect_backbone(bundle / "backbone.safetensors").fingerprint,
    }
    edit_manifest(bundle, backbone=other)
    with pytest.raises(AdapterBackboneMismatch):
        load_bundle(bundle)


@pytest.mark.parametrize("kind", ["the file", "its folder", "the manifest's neighbour"])
def test_links_are_refused_even_to_the_right_bytes(kind: str, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "outside")
    if kind == "its folder":
        shutil.rmtree(bundle / "adapters")
        (bundle / "adapters").symlink_to(tmp_path / "outside" / "adapters")
    else:
        (bundle / "adapters/0.safetensors").unlink()
        target = (
            "../golden/0.safetensors" if "neighbour" in kind else tmp_path / "outside/adapters/0.safetensors"
        )
        (bundle / "adapters/0.safetensors").symlink_to(target)
    assert "adapters/0.safetensors is a link" in refusal(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "adapters/../../outside.safetensors",
        "adapters/0.safetensors\n",
        "adapters/０.safetensors",
        "model.pkl",
        "",
    ],
)
def test_names_that_no_bundle_holds_are_refused_wherever_they_stand(name: str, bundle: Path) -> None:
    whole = json.loads((bundle / "manifest.json").read_text())
    edit_manifest(bundle, files=whole["files"] | {name: "0" * 64})
    assert "which no bundle holds" in refusal(bundle)
    for changed in (
        {"tasks": [whole["tasks"][0] | {"file": name}]},
        {"tasks": [whole["tasks"][0] | {"golden": name}]},
        {"backbone": whole["backbone"] | {"file": name}},
    ):
        edit_manifest(bundle, **whole | changed)
        assert "which no bundle holds" in refusal(bundle)


MANIFESTS: dict[str, str] = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "brackets without end": "[" * 100_000,
    "a key twice": '{"schema":1,"schema":1,"name":"a","backbone":{},"files":{},"tasks":[]}',
    "of a newer schema": '{"schema":2}',
    "without files": '{"schema":1,"name":"a","backbone":{"file":"backbone.safetensors"},"tasks":[]}',
    "files that are a list": '{"schema":1,"name":"a","backbone":{"file":"b"},"tasks":[],"files":[]}',
    "backbone that is null": '{"schema":1,"name":"a","backbone":null,"tasks":[],"files":{}}',
    "tasks that are null": '{"schema":1,"name":"a","backbone":{"file":"b"},"tasks":null,"files":{}}',
    "a task that is text": '{"schema":1,"name":"a","backbone":{"file":"b"},"tasks":["t"],"files":{}}',
    "a task without a name": '{"schema":1,"name":"a","backbone":{"file":"b"},"tasks":[{}],"files":{}}',
    "a task whose file is a list": (
        '{"schema":1,"name":"a","backbone":{"file":"b"},"files":{},"tasks":[{"name":"t","ref":"t@1","kind":"affiner",'
        '"dataset":"d","class_names":[],"block":[4,5],"file":["x"]}]}'
    ),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_cannot_be_read_is_refused(what: str, bundle: Path) -> None:
    (bundle / "manifest.json").write_text(MANIFESTS[what])
    assert refusal(bundle).startswith(f"{bundle} is not a whole bundle: its ")


def test_one_task_named_twice_is_refused(bundle: Path) -> None:
    tasks = json.loads((bundle / "manifest.json").read_text())["tasks"]
    edit_manifest(bundle, tasks=[tasks[0], tasks[0]])
    assert "names a task twice" in refusal(bundle)


def test_a_folder_that_is_no_bundle_and_no_folder_at_all_are_refused(tmp_path: Path) -> None:
    assert "there is no manifest.json in it" in refusal(tmp_path)
    assert "there is no manifest.json in it" in refusal(tmp_path / "nowhere")


def test_a_full_disk_leaves_nothing_behind(parts: Path, tmp_path: Path) -> None:
    """Each size stops the export at another file."""
    for limit in (100, 20_000):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                export(parts, tmp_path / "bundle")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert names_in(tmp_path) == []


def test_a_source_that_is_missing_leaves_nothing_behind(parts: Path, tmp_path: Path) -> None:
    task = BundleTask("t", "t@1", "affiner", ("a",), (4, 5), parts / "nowhere", None, "d@1")
    with pytest.raises(AdapterFileInvalid, match="nowhere"):
        write_bundle(tmp_path / "bundle", "mine", parts / "backbone", {}, [task], "")
    assert names_in(tmp_path) == []


def test_verifying_and_writing_a_bundle_need_no_torch() -> None:
    code = "import sys, affinery.bundle_writing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def by_reference(parts: Path, folder: Path) -> Manifest:
    fingerprint = inspect_backbone(parts / "backbone").fingerprint
    task = BundleTask(
        "digits", "digits@1", "affiner", ("digits 0", "digits 1"), (4, 6), parts / "digits", None, "d@1"
    )
    return write_bundle(folder, "mine", None, {"ref": "tiny@1", "fingerprint": fingerprint}, [task], "")


def test_a_bundle_may_name_its_backbone_and_then_takes_that_one_only(parts: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    by_reference(parts, bundle)
    assert files_of(bundle) == ["README.md", "adapters/0.safetensors", "manifest.json"]
    assert affinery.draw(affinery.load(bundle, parts / "backbone"), "digits", 0, steps=2).shape[0] == 1
    assert "its backbone (tiny@1, fingerprint" in refusal(bundle)
    save_backbone(tiny.backbone(seed=9), tmp_path / "other")
    with pytest.raises(BundleInvalid, match=r"other is not the one that the manifest names"):
        load_bundle(bundle, tmp_path / "other")


def test_an_adapter_of_another_backbone_is_not_shipped(parts: Path, tmp_path: Path) -> None:
    task = BundleTask("t", "t@1", "affiner", ("digits 0",), (4, 5), parts / "digits", None, "d@1")
    with pytest.raises(AdapterBackboneMismatch, match="'t'"):
        write_bundle(tmp_path / "bundle", "mine", parts / "backbone", {"fingerprint": "0" * 64}, [task], "")
    assert names_in(tmp_path) == []


def test_a_source_that_is_not_what_was_recorded_is_not_shipped(parts: Path, tmp_path: Path) -> None:
    fingerprint = inspect_backbone(parts / "backbone").fingerprint
    known = {parts / "backbone": "0" * 64}
    with pytest.raises(BundleInvalid, match=r"backbone is not a whole bundle: its SHA-256 is not the one"):
        write_bundle(
            tmp_path / "b", "mine", parts / "backbone", {"fingerprint": fingerprint}, [], "", digests=known
        )
    assert names_in(tmp_path) == []


def with_digest(bundle: Path, name: str, content: bytes) -> None:
    """Somebody else's bytes, and their digest in the manifest."""
    (bundle / name).write_bytes(content)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files=files | {name: tensor_files.sha256_file(bundle / name)})


def header_of(tensors: dict[str, Any]) -> bytes:
    body = json.dumps(tensors).encode()
    return len(body).to_bytes(8, "little") + body


EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
TWICE = f'{{"a":{EMPTY},"a":{EMPTY}}}'.encode()
PICKLE = pickle.dumps({"weight": [1.0]})
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a pickle": (PICKLE, "not a safetensors file"),
    "a shape of petabytes": (
        header_of({"class_rows": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}})
        + b"\0" * 8,
        "does not lie where its shape",
    ),
    "a header longer than the file": ((2**62).to_bytes(8, "little") + b"{}", "cut off in its header"),
    "a tensor twice": (len(TWICE).to_bytes(8, "little") + TWICE, "a key twice"),
    "nothing": (b"", "not a safetensors file"),
}


@pytest.mark.parametrize("name", ["backbone.safetensors", "adapters/1.safetensors"])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_with_the_right_digest_are_refused_by_name(what: str, name: str, bundle: Path) -> None:
    content, says = HOSTILE[what]
    with_digest(bundle, name, content)
    with pytest.raises(UserError, match=says) as refused:
        load_bundle(bundle)
    assert name in str(refused.value)


def test_a_manifest_that_is_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").rename(tmp_path / "elsewhere")
    (bundle / "manifest.json").symlink_to(tmp_path / "elsewhere")
    assert "its manifest.json is a link" in refusal(bundle)


@pytest.mark.parametrize(
    "merges",
    [
        {"ink": {}},
        {"ink": {"nobody": {"weight": 1.0}}},
        {"digits": {"letters": {"weight": 1.0}}},
        {"ink": {"digits": {"weight": "much"}}},
        {"ink": {"digits": {"weight": 1.0, "layers": [["qkv"]]}}},
        [],
    ],
)
def test_sums_that_are_none_are_refused(merges: Any, bundle: Path) -> None:
    edit_manifest(bundle, merges=merges)
    assert "manifest.json cannot be read" in refusal(bundle)


def test_a_bundle_with_a_sum_draws_from_it_as_the_composed_model_does(parts: Path, tmp_path: Path) -> None:
    weights = {"digits": Weight(0.6), "letters": Weight(0.5, (("qkv", 0.1),))}
    export(parts, tmp_path / "bundle")
    edit_manifest(
        tmp_path / "bundle", merges={"ink": {task: weight.to_json() for task, weight in weights.items()}}
    )
    model, own = affinery.load(tmp_path / "bundle"), affinery.load(tmp_path / "bundle")
    own.unload("ink")
    own.merge("ink", weights)
    assert list(model.slots) == ["digits", "letters", "ink"]
    drawn = [affinery.draw(each, "ink", "letters/letters 1", n=2) for each in (model, own)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], affinery.draw(model, "letters", "letters 1", n=2))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two owners' keys: the private and the public one of each."""
    folder = tmp_path_factory.mktemp("keys")
    for owner in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / owner).write_bytes(private)
        (folder / f"{owner}.pub").write_bytes(public)
    return {path.name: path for path in folder.iterdir()}


def test_a_signed_bundle_is_loaded_with_its_owners_key_and_no_other(
    bundle: Path, keys: dict[str, Path]
) -> None:
    sign(bundle, keys["ours"])
    assert "bundle.sig" in names_in(bundle)
    assert list(affinery.load(bundle, signed_by=keys["ours.pub"]).slots) == ["digits", "letters"]
    assert list(affinery.load(bundle).slots) == ["digits", "letters"]
    with pytest.raises(BundleInvalid, match=r"bundle\.sig is not its signature by this key"):
        affinery.load(bundle, signed_by=keys["theirs.pub"])
    with pytest.raises(ConfigInvalid, match="no public elliptic key"):
        affinery.load(bundle, signed_by=bundle / "README.md")


def test_a_bundle_that_was_changed_together_with_its_manifest_is_not_the_one_that_was_signed(
    bundle: Path, keys: dict[str, Path]
) -> None:
    sign(bundle, keys["ours"])
    with_digest(bundle, "README.md", b"other")
    assert list(load_bundle(bundle).slots) == ["digits", "letters"]
    with pytest.raises(BundleInvalid, match=r"bundle\.sig is not its signature"):
        affinery.load(bundle, signed_by=keys["ours.pub"])
    (bundle / "bundle.sig").unlink()
    with pytest.raises(BundleInvalid, match="it has no signature"):
        affinery.load(bundle, signed_by=keys["ours.pub"])


def test_a_key_that_is_none_signs_nothing(bundle: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no private elliptic key"):
        sign(bundle, bundle / "README.md")
    assert files_of(bundle) == FILES

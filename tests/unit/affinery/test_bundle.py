"""A bundle is whole under its name or not there, and says which of its files is not what was exported."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import affinery
from affinery import tensor_files
from affinery.adapters.files import adapter_bytes
from affinery.backbones.files import inspect_backbone, save_backbone
from affinery.bundle import Manifest, load_bundle, read_manifest, verify_bundle
from affinery.bundle_writing import BundleTask, write_bundle
from affinery.composed import ComposedModel
from affinery.errors import AdapterBackboneMismatch, AdapterFileInvalid, BundleInvalid, ConfigInvalid
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
    code = "import sys, affinery.bundle; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

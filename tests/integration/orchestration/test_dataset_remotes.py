"""Datasets in several places: disk, S3, git work trees; what is lost or torn in one comes from another."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from affinery.errors import ConfigInvalid
from orchestration.datasets import ImportedDataset, ensure, import_dataset, init_data
from orchestration.datasets import repository as dvc
from orchestration.datasets.states import (
    AWAY,
    CHANGED,
    DAMAGED,
    HELD,
    LACKING,
    MISSING,
    WHOLE,
    State,
    state_of,
)
from orchestration.errors import DatasetUnavailable
from registry.columns import utc_now
from registry.records import DatasetRecord
from tests.learning_world import image, image_folder
from trainers.errors import DatasetChanged
from trainers.packs import IMAGES


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_data(tmp_path / "space/data")
    return tmp_path / "space/data"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images", "x", "y", each=2)


def add(data: Path, folder: Path) -> ImportedDataset:
    return import_dataset(data, folder, name="set")


def state(data: Path, found: ImportedDataset) -> State:
    record = DatasetRecord(
        node_id=1,
        created_at=utc_now(),
        version=1,
        parent=None,
        **{key: value for key, value in vars(found).items() if key != "notes"},
    )
    return state_of(data, record)


def forget(data: Path, found: ImportedDataset) -> None:
    """This machine has neither the pack nor DVC's cache of it."""
    shutil.rmtree(data / found.dvc_path)
    shutil.rmtree(data / ".dvc/cache")


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_remote_gets_what_is_pushed_and_gives_it_back(
    data: Path, images: Path, tmp_path: Path
) -> None:
    found = add(data, images)
    dvc.add_remote(data, "shelf", str(tmp_path / "shelf"), {}, default=False)
    assert [(place.remote, place.state) for place in state(data, found).places] == [
        ("local", HELD),
        ("shelf", LACKING),
    ]
    dvc.push(data, found.dvc_path, "shelf")
    assert state(data, found).sound
    forget(data, found)
    shutil.rmtree(data.parent / "dvc-remote")
    ensure(data, found.dvc_path, found.digest)
    assert [place.state for place in state(data, found).places] == [LACKING, HELD]


def test_a_new_default_remote_is_where_new_versions_go(data: Path, images: Path, tmp_path: Path) -> None:
    dvc.add_remote(data, "shelf", str(tmp_path / "shelf"), {}, default=True)
    add(data, images)
    assert len(objects(tmp_path / "shelf")) == 3
    assert objects(data.parent / "dvc-remote") == []
    dvc.remove_remote(data, "shelf")
    assert [(remote.name, remote.default) for remote in dvc.remotes(data)] == [("local", True)]


@pytest.mark.parametrize(
    ("name", "url"), [("a b", "/x"), ("../x", "/x"), ("web", "http://x"), ("ssh", "ssh://x/y")]
)
def test_a_remote_that_cannot_be_one_is_refused(data: Path, name: str, url: str) -> None:
    before = (data / ".dvc/config").read_bytes()
    with pytest.raises(ConfigInvalid, match="remote"):
        dvc.add_remote(data, name, url, {}, default=False)
    with pytest.raises(ConfigInvalid, match="none of local"):
        dvc.push(data, "set/x", "nobody")
    with pytest.raises(ConfigInvalid, match="workspace's own"):
        dvc.remove_remote(data, "local")
    assert (data / ".dvc/config").read_bytes() == before


def test_an_older_version_comes_back_by_its_pin_after_newer_ones(data: Path, images: Path) -> None:
    versions = []
    for seed in range(3):
        image(images / "x" / f"more {seed}.png", 500 + seed)
        versions.append(add(data, images))
    for found in versions:
        shutil.rmtree(data / found.dvc_path)
    shutil.rmtree(data / ".dvc/cache")
    for found in versions:
        ensure(data, found.dvc_path, found.digest)
    assert len({found.dvc_md5 for found in versions}) == 3


def test_a_lost_dvc_file_is_written_again_from_the_pin_alone(data: Path, images: Path) -> None:
    found = add(data, images)
    shutil.rmtree(data / "set")
    shutil.rmtree(data / ".dvc/cache")
    assert not state(data, found).pinned
    dvc.pin_again(data, found.dvc_path, found.dvc_md5)
    ensure(data, found.dvc_path, found.digest)
    assert state(data, found).sound


@pytest.mark.parametrize("torn", ["the .dir object", "an object of images", "a .dvc file"])
def test_what_is_torn_in_the_only_remote_is_told_and_never_trained_on(
    data: Path, images: Path, torn: str
) -> None:
    found = add(data, images)
    forget(data, found)
    held = objects(data.parent / "dvc-remote")
    chosen = {
        "the .dir object": [path for path in held if path.suffix == ".dir"],
        "an object of images": [max(held, key=lambda path: path.stat().st_size)],
        "a .dvc file": [dvc.pin_file(data / found.dvc_path)],
    }[torn]
    for path in chosen:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises((DatasetUnavailable, DatasetChanged)):
        ensure(data, found.dvc_path, found.digest)
    shutil.rmtree(data / found.dvc_path, ignore_errors=True)
    assert add(data, images).digest == found.digest
    ensure(data, found.dvc_path, found.digest)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_remote_that_lost_or_tore_an_object_is_told_and_mended_by_a_push(
    data: Path, images: Path, which: int
) -> None:
    found = add(data, images)
    path = objects(data.parent / "dvc-remote")[which]
    path.unlink()
    assert [place.state for place in state(data, found).places] == [LACKING]
    dvc.push(data, found.dvc_path)
    assert state(data, found).sound
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-7])
    shutil.rmtree(data / ".dvc/cache")
    assert [place.state for place in state(data, found).places] == [DAMAGED]
    dvc.push(data, found.dvc_path)
    assert state(data, found).sound


def test_a_torn_object_in_the_cache_is_fetched_from_the_remote(data: Path, images: Path) -> None:
    found = add(data, images)
    for path in objects(data / ".dvc/cache"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-9])
    shutil.rmtree(data / found.dvc_path)
    ensure(data, found.dvc_path, found.digest)


def test_a_changed_pack_is_put_back_and_kept_where_that_fails(data: Path, images: Path) -> None:
    found = add(data, images)
    path = data / found.dvc_path / IMAGES
    path.unlink()
    path.write_bytes(b"not what it was")
    assert (state(data, found).pack, WHOLE) == (CHANGED, "whole")
    shutil.copytree(data.parent / "dvc-remote", data.parent / "kept")
    shutil.rmtree(data.parent / "dvc-remote")
    shutil.rmtree(data / ".dvc/cache")
    with pytest.raises(DatasetUnavailable):
        dvc.restore(data, found.dvc_path, found.digest)
    assert path.read_bytes() == b"not what it was"
    assert [place.state for place in state(data, found).places] == [LACKING]
    shutil.copytree(data.parent / "kept", data.parent / "dvc-remote")
    dvc.restore(data, found.dvc_path, found.digest)
    assert state(data, found).sound


def test_a_workspace_that_was_moved_finds_its_own_remote(data: Path, images: Path, tmp_path: Path) -> None:
    found = add(data, images)
    moved = (tmp_path / "space").rename(tmp_path / "moved") / "data"
    forget(moved, found)
    assert state(moved, found).pack == MISSING
    ensure(moved, found.dvc_path, found.digest)


# --- git ---


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    return tree


def git(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout


def test_inside_a_git_work_tree_pins_are_committed_and_data_is_not(work_tree: Path, images: Path) -> None:
    data = work_tree / "space/data"
    init_data(data)
    (work_tree / ".gitignore").write_text("/space/dvc-remote\n")
    first = add(data, images)
    git(work_tree, "add", "-A")
    git(work_tree, "commit", "-qm", "one")
    kept = git(work_tree, "ls-files").splitlines()
    assert f"space/data/{first.dvc_path}.dvc" in kept
    assert not [name for name in kept if name.endswith((".zip", "manifest.json", ".lock"))]
    image(images / "x/more.png", 77)
    second = add(data, images)
    forget(data, second)
    git(work_tree, "clean", "-qfd")
    for found in (first, second):
        dvc.pin_again(data, found.dvc_path, found.dvc_md5)
        ensure(data, found.dvc_path, found.digest)


def test_where_git_ignores_the_workspace_dvc_works_without_git(work_tree: Path, images: Path) -> None:
    (work_tree / ".gitignore").write_text("/space\n")
    init_data(work_tree / "space/data")
    found = add(work_tree / "space/data", images)
    assert "no_scm" in (work_tree / "space/data/.dvc/config").read_text()
    forget(work_tree / "space/data", found)
    ensure(work_tree / "space/data", found.dvc_path, found.digest)
    assert git(work_tree, "status", "--porcelain") == "?? .gitignore\n"


# --- S3 ---


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server in this process. → its address, with an empty bucket `data`"""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="data")
    yield address
    server.stop()


def test_a_remote_on_s3_takes_a_dataset_and_gives_it_back_and_may_be_away(
    data: Path, images: Path, bucket: str
) -> None:
    import boto3

    dvc.add_remote(data, "cloud", "s3://data/sets", {"endpointurl": bucket}, default=True)
    found = add(data, images)
    store = boto3.client("s3", endpoint_url=bucket)
    assert store.list_objects_v2(Bucket="data")["KeyCount"] == 3
    assert "testing" not in (data / ".dvc/config").read_text()
    forget(data, found)
    ensure(data, found.dvc_path, found.digest)
    assert [(place.remote, place.state) for place in state(data, found).places] == [
        ("cloud", HELD),
        ("local", LACKING),
    ]
    dvc.push(data, found.dvc_path, "local")
    # Its objects are lost, then it answers no more: the other remote has what is needed.
    for entry in store.list_objects_v2(Bucket="data")["Contents"]:
        store.delete_object(Bucket="data", Key=entry["Key"])
    forget(data, found)
    ensure(data, found.dvc_path, found.digest)
    dvc.add_remote(data, "cloud", "s3://data/sets", {"endpointurl": "http://127.0.0.1:9"}, default=True)
    assert [place.state for place in state(data, found).places] == [AWAY, HELD]
    forget(data, found)
    ensure(data, found.dvc_path, found.digest)
    image(images / "x/more.png", 88)
    with pytest.raises(DatasetUnavailable, match="DVC in"):
        add(data, images)
    assert len(list((data / "set").glob("*.dvc"))) == 1

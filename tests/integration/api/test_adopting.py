"""Datasets by DVC reference: what a remote of the workspace has, and nothing else of the machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from affinery_app import settings
from affinery_app.wiring import Workspace
from orchestration.datasets import init_data, repository
from registry.models import Dataset
from tests.command_line import typed
from tests.integration.api.conftest import Reply, Service


def images(folder: Path) -> Path:
    for number, name in enumerate(("cats/0.png", "cats/1.png", "dogs/0.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 99, 7)).save(folder / name)
    return folder


def put(remote: Path, content: bytes, suffix: str = "", name: str | None = None) -> str:
    """An object as DVC keeps it. → its MD5"""
    md5 = name or hashlib.md5(content, usedforsecurity=False).hexdigest()
    (remote / "files" / "md5" / md5[:2]).mkdir(parents=True, exist_ok=True)
    (remote / "files" / "md5" / md5[:2] / f"{md5[2:]}{suffix}").write_bytes(content)
    return f"{md5}{suffix}"


def listed(remote: Path, inside: dict[str, str]) -> str:
    """A folder as DVC keeps it: paths and the MD5s of their files."""
    entries = [{"md5": md5, "relpath": path} for path, md5 in inside.items()]
    return put(remote, json.dumps(entries).encode(), ".dir")


@pytest.fixture
def remote(space: Workspace, tmp_path: Path) -> Path:
    """A remote of the workspace, called team."""
    init_data(space.data)
    repository.add_remote(space.data, "team", str(tmp_path / "team"), {}, default=False)
    return tmp_path / "team"


def adopt(service: Service, md5: str, remote: str | None = "team", **more: Any) -> Reply:
    asked = {"name": "pets", "dvc": {"md5": md5, "remote": remote}, **more}
    return service.ask("POST", "/v1/datasets", asked)


def test_what_a_remote_has_becomes_a_dataset_and_a_pack_the_same_one(
    space: Workspace,
    remote: Path,
    service: Service,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = images(tmp_path / "pets")
    inside = {
        path.relative_to(folder).as_posix(): put(remote, path.read_bytes()) for path in folder.rglob("*.png")
    }
    made = adopt(service, listed(remote, inside), licence="CC0-1.0")
    assert made.status == 201, made.body
    assert (made.json["classes"], made.json["class_counts"]) == (["cats", "dogs"], [2, 1])
    # Every version lies in the workspace's own remote as a pack: adopted, it is the same dataset.
    again = adopt(service, made.json["dvc_md5"], None)
    assert (again.status, again.json["digest"], again.json["ref"]) == (
        201,
        made.json["digest"],
        made.json["ref"],
    )
    (space.folder / settings.FILE).write_text(settings.HEADER)
    typed_too = ("dataset", "adopt", "pets", listed(remote, inside), "--remote", "team")
    for variable in ("AFFINERY_WORKSPACE", "AFFINERY_URL", "AFFINERY_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    said = []
    for place in (("--workspace", space.folder), ("--url", f"http://127.0.0.1:{service.port}")):
        capfd.readouterr()
        assert typed(*typed_too, "--licence", "CC0-1.0", *place, "--json") == 0
        said.append(capfd.readouterr())
        assert typed("dataset", "adopt", "pets", "0" * 32, "--remote", "team", *place) == 2
        said.append(capfd.readouterr())
    (here, refused_here), (there, refused_there) = said[:2], said[2:]
    assert here == there
    assert json.loads(here.out)["ref"] == "pets@1"
    for each in (refused_here, refused_there):
        assert each.out == ""
        assert "the remote has no such object" in each.err
    assert service.count(Dataset) == len(service.get("/v1/datasets")["items"])
    assert service.get("/v1/datasets/pets")["version"] == 1
    assert list((space.folder / "cache").glob("fetched-*")) == []


def test_nothing_but_what_a_remote_has_is_adopted_and_nothing_half_written_stays(
    space: Workspace, remote: Path, service: Service, tmp_path: Path
) -> None:
    folder = images(tmp_path / "pets")
    good = put(remote, (folder / "cats" / "0.png").read_bytes())
    torn = put(remote, b"not what its name says", name="ab" * 16)
    before = service.count(Dataset)
    for md5, where in (
        ("0" * 32, "team"),
        ("0" * 32 + ".dir", "team"),
        (listed(remote, {"cats/0.png": good}), "nowhere"),
        (listed(remote, {"cats/0.png": good}), "/etc"),
        (listed(remote, {"cats/0.png": good}), str(tmp_path)),
        (listed(remote, {"../../evil.png": good}), "team"),
        (listed(remote, {"/etc/evil.png": good}), "team"),
        (listed(remote, {"cats\\..\\evil.png": good}), "team"),
        (listed(remote, {"cats/0.png": "../../../etc/passwd"}), "team"),
        (listed(remote, {"cats": good, "cats/0.png": good}), "team"),
        (listed(remote, {"cats/0.png": "0" * 32}), "team"),
        (listed(remote, {"cats/0.png": torn}), "team"),
        (torn, "team"),
        (good, "team"),
        (put(remote, b"{", ".dir"), "team"),
        (put(remote, b"[1]", ".dir"), "team"),
        ("/etc/passwd", "team"),
        ("../../registry.db", "team"),
    ):
        reply = adopt(service, md5, where)
        assert reply.status == 422, (md5, where, reply.body)
        assert str(space.folder / "cache") not in reply.json["detail"]
    both = {"upload": "0" * 32, "sha256": "0" * 64}
    assert adopt(service, good, **both).status == 422
    assert service.ask("POST", "/v1/datasets", {"name": "pets"}).status == 422
    assert service.count(Dataset) == before
    assert list((space.folder / "cache").glob("fetched-*")) == []
    assert list(tmp_path.parent.rglob("evil.png")) == []

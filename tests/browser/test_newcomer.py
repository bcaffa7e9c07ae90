"""The whole path of a newcomer, in a browser: from an empty workspace to a bundle that verifies itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from affinery_app.wiring import create_workspace, open_workspace
from orchestration import additions
from tests import learning_world
from tests.browser.conftest import Visitor
from tests.integration.api.conftest import serving

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
PATIENCE_MS = 600_000


@pytest.fixture
def worker(space_with_backbone: Path) -> Iterator[None]:
    """A worker of the newcomer's workspace, as people start it."""
    words = ["worker", "--workspace", str(space_with_backbone)]
    command = [sys.executable, "-m", "affinery_app.cli.main", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def space_with_backbone(tmp_path: Path, tiny_backbone: Path) -> Path:
    """A workspace in which a backbone is, and nothing else."""
    space, _ = create_workspace(tmp_path / "space")
    additions.add_backbone(space.sessions, space.store, tiny_backbone, "tiny")
    space.sessions.engine.dispose()
    return tmp_path / "space"


def zipped(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return to


@pytest.mark.usefixtures("worker")
def test_a_newcomer_comes_from_images_to_a_bundle(
    space_with_backbone: Path, visitor: Visitor, tmp_path: Path
) -> None:
    images = zipped(
        learning_world.image_folder(tmp_path / "shapes", "round", "flat"), tmp_path / "shapes.zip"
    )
    page = visitor.page
    page.set_default_timeout(PATIENCE_MS)
    with serving(open_workspace(space_with_backbone)) as service:
        visitor.goes_to(service, "/")
        page.click("main >> text=Schedule a new task >> nth=0")
        page.set_input_files("#archive", images)
        assert page.input_value("#dataset-name") == "shapes"
        page.click("text=Upload >> nth=-1")
        page.wait_for_url("**/new?dataset=shapes*")
        page.wait_for_selector("#preview img")
        assert page.input_value("#name") == "shapes"
        page.fill("#steps", "8")
        page.fill("#batch", "4")
        page.fill("#rank", "2")
        page.wait_for_selector("#estimate >> text=Parameters")
        page.click("text=Schedule it")
        page.wait_for_url("**/jobs/*")
        page.wait_for_selector("a:text-is('shapes@1')")
        visitor.goes_to(service, "/compositions")
        page.fill("#name", "mine")
        page.click("button:text-is('Compose')")
        page.click("#export > summary")
        page.click("button:text-is('Export it')")
        page.wait_for_url("**/jobs/*")
        page.click("text=To the exports of mine@1")
        with page.expect_download() as started:
            page.click("a:has-text('Download')")
        started.value.save_as(tmp_path / "bundle.tar")
        with tarfile.open(tmp_path / "bundle.tar") as archive:
            archive.extractall(tmp_path / "bundle", filter="data")
    from affinery.bundle import verify_bundle

    (bundle,) = {each.parent for each in (tmp_path / "bundle").rglob("manifest.json")}
    assert [each["name"] for each in verify_bundle(bundle).tasks] == ["shapes"]

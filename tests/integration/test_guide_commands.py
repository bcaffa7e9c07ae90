"""What the guides to the registry tell people to type, typed: in one workspace, in the order of the pages."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from affinery.backbones.files import load_backbone, save_backbone
from affinery_app.wiring import create_workspace
from orchestration import additions, composing, scheduling
from orchestration.services import Services
from registry import adapters, evaluations
from tests import learning_world as world
from tests.command_line import typed
from tests.learnt_space import learn

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
PAGES = ("registry.md", "keeping-the-record.md")
SEEN = {"recognition": {"share": 0.9, "samples": 200, "real_images": 20, "real_accuracy": 0.95}}


def told(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page's console blocks, each with the lines of its output that are shown."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", (GUIDES / page).read_text(), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a workspace that holds what the pages speak of, and the files that they bring in."""
    here = tmp_path_factory.mktemp("guides")
    space, _ = create_workspace(here / "affinery-workspace")
    services = Services(space.sessions, space.store, space.tracking, space.data, space.runs, store_url="")
    world.tiny_backbone(here / "dit.safetensors")
    additions.add_backbone(space.sessions, space.store, here / "dit.safetensors", "dit")
    for seed, name in enumerate(("digits", "faces")):
        world.add_dataset(services, world.image_folder(here / name, "x", "y", seed=seed), name)
        scheduling.schedule(
            space.sessions,
            [name],
            [name],
            backbone="dit",
            kind="affiner",
            config={"rank": 2},
            recipe={"steps": 2},
        )
        learn(services, here / "learnt", SEEN)
    scheduling.schedule_again(space.sessions, ["digits"], {"steps": 2})
    learn(services, here / "learnt", SEEN)
    for version, member in ((1, "digits@1"), (2, "digits@2")):
        made = composing.compose_tasks(space.sessions, "everything", [member, "faces@1"])
        assert made.version == version
    with space.sessions.begin() as session:
        for version, kid in ((1, 0.03), (2, 0.01042)):
            ref = adapters.get(session, f"digits@{version}").ref
            evaluations.record(
                session,
                adapter=ref,
                reference="dataset:digits@1",
                protocol={"samples": 10},
                results={"FD[recogniser]": 12.31, "KD[recogniser]": {"mean": kid, "low": 0.01, "high": 0.04}},
            )
    better = load_backbone(here / "dit.safetensors")
    for parameter in better.parameters():
        parameter.data.add_(0.01)
    save_backbone(better, here / "better.safetensors")
    world.image_folder(here / "more-digits", "x", "y", each=9, seed=5)
    before = Path.cwd()
    os.chdir(here)
    yield here
    os.chdir(before)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_does_what_it_says(
    folder: Path, page: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFFINERY_WORKSPACE", raising=False)
    assert (folder / "affinery-workspace").is_dir()
    commands = told(page)
    assert len(commands) > 10
    for line, shown in commands:
        name, *arguments = shlex.split(line)
        assert name == "affinery"
        code = typed(*arguments)
        said = capfd.readouterr()
        assert code == 0, f"{line}\n{said.out}{said.err}"
        for wanted in shown:
            pattern = ".*".join(map(re.escape, " ".join(wanted.split()).split("…")))
            lines = [" ".join(each.split()) for each in said.out.splitlines()]
            assert any(re.fullmatch(pattern, each) for each in lines), f"{line}\n{wanted}\n{said.out}"

"""Evaluations from the command line, where something was learnt: recorded, repeated, refused."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from affinery_app.wiring import Workspace, create_workspace
from orchestration import additions, queue
from orchestration.retention import stages
from orchestration.services import Services
from orchestration.upgrades import upgrade
from registry import adapters, datasets, evaluations, renaming
from registry.records import AdapterRecord
from registry.session import Sessions
from tests import learning_world as world
from tests.command_line import typed
from tests.learnt_space import learn

QUICK = ("--samples", "6", "--steps", "2")


def begun(here: Path) -> tuple[Workspace, Services]:
    """A workspace with a backbone and no task."""
    made, _ = create_workspace(here / "affinery-workspace")
    services = Services(made.sessions, made.store, made.tracking, made.data, made.runs, store_url="")
    world.tiny_backbone(here / "dit.safetensors")
    additions.add_backbone(services.sessions, services.store, here / "dit.safetensors", "tiny")
    return made, services


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """A workspace, the present folder, with `first` learnt alone, `second` and `third` together after it."""
    here = tmp_path_factory.mktemp("evaluations")
    made, services = begun(here)
    for seed, names in enumerate((("first",), ("second", "third"))):
        for i, name in enumerate(names):
            folder = world.image_folder(here / name, "x", "y", seed=10 * seed + i)
            world.add_dataset(services, folder, name)
        world.schedule(services, *names, steps=2)
        learn(services, here / "learnt")
    before = Path.cwd()
    os.chdir(here)
    yield made.sessions
    os.chdir(before)


def run(capfd: pytest.CaptureFixture[str], *words: str) -> Any:
    capfd.readouterr()
    assert typed(*words, "--json") == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def test_what_is_measured_is_recorded_once_and_can_be_compared(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    [made] = run(capfd, "evaluate", "first", *QUICK)
    assert made["adapter"] == "first@1"
    assert all(Path(picture).is_file() for picture in made["pictures"])
    with space.read() as session:
        before = len(evaluations.list_for(session, "first"))
    [again] = run(capfd, "evaluate", "first", *QUICK)
    assert again == made
    with space.read() as session:
        assert len(evaluations.list_for(session, "first")) == before
    found = run(capfd, "compare", "first", "first")
    assert "FD[recogniser]" in found["figures"]
    assert typed("adapter", "search", f"metric.FD[recogniser]@{made['protocol_digest'][:8]}>=0") == 0
    assert "first@1" in capfd.readouterr().out


def test_adapters_that_were_measured_otherwise_are_not_compared_and_the_difference_is_named(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    run(capfd, "evaluate", "second", "--samples", "4", "--steps", "3")
    run(capfd, "evaluate", "first", *QUICK)
    assert typed("compare", "first", "second") == 2
    told = capfd.readouterr().err
    assert "samples 6 and 4" in told
    assert "sampler.steps 2 and 3" in told


def test_an_evaluation_may_be_scheduled_with_all_that_it_is_asked(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    job = run(capfd, "evaluate", "first", "--later", *QUICK, "--guidance", "1")
    assert (job["kind"], job["state"]) == ("evaluate", "queued")
    asked = job["payload"]
    with space.read() as session:
        assert [adapters.get(session, ref).ref for ref in asked.pop("adapters")] == ["first@1"]
    assert asked == {"samples": 6, "steps": 2, "guidance": 1.0}
    with space.begin() as session:
        queue.cancel(session, job["id"])


def test_a_matrix_may_be_scheduled_now_or_with_all_options_of_jobs(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    later = run(capfd, "retention", "tiny", "--later", *QUICK)
    added = run(capfd, "job", "add", "retention", "tiny", "--priority", "3", *QUICK)
    for job in (later, added):
        assert (job["kind"], job["state"]) == ("retention", "queued")
        assert {**job["payload"], "backbone": ""} == {"backbone": "", "samples": 6, "steps": 2}
        with space.begin() as session:
            queue.cancel(session, job["id"])
    assert added["priority"] == 3
    assert typed("retention", "tiny", "--after", "1") == 2
    assert "add --later" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("first", "--extractor", "fid"), "Known: clip=FOLDER"),
        (("first", "--extractor", "timm:hf-hub:timm/resnet18=absent.pth"), "Known: clip=FOLDER"),
        (("first", "--extractor", "inception=."), "is no file"),
        (("first", "--seed", "9223372036854775807"), "evaluate cannot be done as it was asked for: seed:"),
        (("first", "--guidance", "inf"), "evaluate cannot be done as it was asked for: guidance:"),
        (("first", "--extractor", "inception=absent.pth"), "is not there; name weights"),
        (("first", "--condition-model", "."), "told no condition"),
        (("first", "--after", "1"), "add --later"),
        (("nothing",), "nothing"),
        (("first", "nothing"), "nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_is_recorded(
    space: Sessions, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    with space.read() as session:
        before = len(evaluations.list_all(session))
    assert typed("evaluate", *words) == 2
    assert told in capfd.readouterr().err
    with space.read() as session:
        assert len(evaluations.list_all(session)) == before


@pytest.mark.parametrize("words", [("evaluate", "first"), ("retention", "tiny")])
@pytest.mark.parametrize("after", [(), ("--after", "1")])
def test_an_extractor_that_is_none_is_refused_when_it_is_scheduled(
    space: Sessions, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], after: tuple[str, ...]
) -> None:
    with space.read() as session:
        before = len(queue.list_all(session))
    assert typed(*words, "--later", *after, "--extractor", "foo") == 2
    assert "There is no extractor named 'foo'" in capfd.readouterr().err
    with space.read() as session:
        assert len(queue.list_all(session)) == before


def test_a_report_is_not_written_over_a_folder(space: Sessions, capfd: pytest.CaptureFixture[str]) -> None:
    Path("reports").mkdir()
    assert typed("report", "first", "--out", "reports") == 2
    assert "--out: reports is a folder; name the HTML file to write" in capfd.readouterr().err
    assert list(Path("reports").iterdir()) == []


def test_frozen_adapters_forget_nothing_after_later_additions(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    found = run(capfd, "retention", "tiny", *QUICK)
    assert found["stages"] == ["first@1", "second@1 + third@1"]
    assert found["tasks"] == ["first", "second", "third"]
    (alone, *nothing), (later, *others) = found["matrix"]
    assert nothing == [None, None]
    assert None not in others
    assert later == pytest.approx(alone, rel=1e-4)  # another batch of adapters rounds otherwise
    assert found["forgetting_first_last"]["first"] == pytest.approx(0, abs=1e-4)
    assert None not in found["step_0"]
    assert found["costs"]["third"]["adapter"] == "third@1"
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with `grow` learnt, and learnt again after its dataset had grown."""
    here = tmp_path_factory.mktemp("grown")
    made, services = begun(here)
    world.add_dataset(services, world.image_folder(here / "few", "x", "y"), "grow")
    world.schedule(services, "grow", steps=2)
    learn(services, here / "learnt")
    world.add_dataset(services, world.image_folder(here / "more", "x", "y", each=12, seed=3), "grow")
    upgrade(services.sessions)
    learn(services, here / "learnt")
    return made


def test_all_figures_of_a_task_are_measured_against_the_images_of_its_newest_adapter(
    grown: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    there = ("--workspace", str(grown.folder))
    found = run(capfd, "retention", "tiny", *QUICK, *there)
    assert found["stages"] == ["grow@1", "grow@2"]
    with grown.sessions.read() as session:
        measured = [evaluations.list_for(session, ref) for ref in ("grow@1", "grow@2")]
    assert [[each.reference for each in of] for of in measured] == [["grow@2"], ["grow@2"]]
    assert [[each.protocol_digest for each in of] for of in measured] == 2 * [[found["protocols"]["grow"]]]
    one, two = run(capfd, "compare", "grow@1", "grow@2", *there)["figures"]["KD[recogniser].mean"].values()
    assert [row[0] for row in found["matrix"]] == [one, two]
    assert found["forgetting_first_last"]["grow"] == two - one


def test_adapters_of_two_versions_of_a_dataset_are_compared_where_both_are_measured_against_one(
    grown: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there = ("--workspace", str(grown.folder))
    both, other = ("grow@1", "grow@2"), ("--samples", "4", "--steps", "2", *there)
    for ref in both:
        run(capfd, "evaluate", ref, *other)
    with grown.sessions.read() as session:
        alone = [evaluations.list_for(session, ref)[-1].protocol_digest for ref in both]
    assert alone[0] != alone[1]
    made = run(capfd, "evaluate", *both, "--against", "grow@1", *other)
    assert [each["reference"] for each in made] == ["grow@1", "grow@1"]
    assert [each["protocol_digest"] for each in made] == [alone[0], alone[0]]
    assert run(capfd, "compare", *both, "--protocol", alone[0], *there)["protocol_digest"] == alone[0]
    services = Services(grown.sessions, grown.store, grown.tracking, grown.data, grown.runs, store_url="")
    world.add_dataset(services, world.image_folder(tmp_path / "other", "x", "z"), "other")
    for later in ((), ("--later",)):
        assert typed("evaluate", "grow@1", "--against", "other", *later, *there) == 2
        assert "against other@1, which has other classes (without 'y' and with 'z')" in capfd.readouterr().err
    job = run(capfd, "job", "add", "evaluate", *both, "--against", "grow", *there)
    with grown.sessions.begin() as session:
        assert datasets.get(session, job["payload"]["against"]).ref == "grow@2"
        queue.cancel(session, job["id"])


def test_tasks_of_which_no_distance_can_be_measured_are_refused_before_anything_is_drawn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made, services = begun(tmp_path)
    there = ("--workspace", str(made.folder))
    world.add_dataset(services, world.image_folder(tmp_path / "few", "x", "y", each=1), "few")
    world.schedule(services, "few", steps=2)
    learn(services, tmp_path / "learnt")
    for samples, told in (
        ("2", "--samples 2 is too few for a distance of task 'few': ask for 3 or more"),
        ("3", "of few@1 it learns from 2 image(s), and 3 are needed"),
    ):
        assert typed("retention", "tiny", "--samples", samples, "--steps", "2", *there) == 2
        assert told in capfd.readouterr().err
    assert not made.evaluations.exists()
    with made.sessions.read() as session:
        assert evaluations.list_all(session) == []


def test_a_task_of_one_class_leaves_the_recognition_of_the_others_in_the_matrix(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made, services = begun(tmp_path)
    for name, classes in (("both", ("x", "y")), ("alone", ("x",))):
        world.add_dataset(services, world.image_folder(tmp_path / name, *classes, each=12), name)
    world.schedule(services, "both", "alone", steps=2)
    learn(services, tmp_path / "learnt")
    there = ("--workspace", str(made.folder))
    recognised = run(capfd, "retention", "tiny", *QUICK, *there)["recognition"]
    [[of_both, of_alone]] = recognised["matrix"]
    assert of_both == recognised["average"]
    assert (of_alone, recognised["forgetting_first_last"]) == (None, {"both": 0.0, "alone": None})
    assert typed("retention", "tiny", *QUICK, *there) == 0
    told = capfd.readouterr().out
    assert f"recognition after each stage (more is better); on average {recognised['average']:.4g}" in told
    assert "learnt since step 0" in told
    assert typed("report", "both", *there) == 0


def test_a_backbone_without_adapters_has_nothing_to_forget(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    from affinery.backbones.files import load_backbone, save_backbone

    other = load_backbone(Path("dit.safetensors"))
    with torch.no_grad():
        next(iter(other.parameters())).add_(0.5)
    save_backbone(other, Path("other.safetensors"))
    assert typed("backbone", "add", "other.safetensors", "--name", "other") == 0
    capfd.readouterr()
    assert typed("retention", "other") == 2
    assert "Nothing was learnt on other@1 yet" in capfd.readouterr().err


def test_a_report_holds_the_figures_curves_and_pictures_of_a_task(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    run(capfd, "evaluate", "first", *QUICK)
    run(capfd, "retention", "tiny", *QUICK)
    told = run(capfd, "report", "first", "--out", "first.html")
    text = Path("first.html").read_text()
    assert told["versions"] == ["first@1"]
    for protocol in told["protocols"]:
        assert protocol[:12] in text
    assert "FD[recogniser]" in text
    assert "R[stage, task]" in text
    assert 'src="data:image/png;base64,' in text
    assert typed("report", "frist") == 2
    assert "Did you mean" in capfd.readouterr().err


def test_pictures_and_the_matrix_stay_in_the_report_after_task_and_backbone_were_renamed(
    space: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    [made] = run(capfd, "evaluate", "third", *QUICK)
    run(capfd, "retention", "tiny", *QUICK)
    with space.begin() as session:
        renaming.rename(session, "task:third", "last")
        renaming.rename(session, "backbone:tiny", "small")
    run(capfd, "report", "last", "--out", "last.html")
    text = Path("last.html").read_text()
    assert "R[stage, task]" in text
    assert "second@1 + last@1" in text
    assert "second@1 + third@1" not in text
    for picture in made["pictures"]:
        assert base64.b64encode(Path(picture).read_bytes()).decode() in text
    with space.begin() as session:
        renaming.rename(session, "task:last", "third")
        renaming.rename(session, "backbone:small", "tiny")


def adapter(task: str, version: int, job: str | None) -> Any:
    made = object.__new__(AdapterRecord)
    for name, value in (("name", task), ("version", version), ("job_id", job)):
        object.__setattr__(made, name, value)
    return made


def test_a_stage_is_a_job_and_holds_the_newest_adapter_of_every_task() -> None:
    one, two = adapter("digits", 1, "a"), adapter("letters", 1, "a")
    three, four, five = adapter("digits", 2, "b"), adapter("faces", 1, None), adapter("cats", 1, None)
    listed = [
        [f"{each.task}@{each.version}" for each in stage] for stage in stages([one, two, three, four, five])
    ]
    assert listed == [
        ["digits@1", "letters@1"],
        ["digits@2", "letters@1"],
        ["digits@2", "letters@1", "faces@1"],
        ["digits@2", "letters@1", "faces@1", "cats@1"],
    ]


def test_the_adapters_of_the_world_are_those_of_two_jobs(space: Sessions) -> None:
    with space.read() as session:
        found = adapters.list_all(session, backbone="tiny@1")
    assert [len(stage) for stage in stages(found)] == [1, 3]

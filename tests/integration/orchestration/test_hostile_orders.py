"""What is typed at the queue and cannot be meant is refused in words, and nothing of it is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from affinery.errors import ConfigInvalid
from affinery_app.wiring import Workspace, create_workspace
from orchestration import additions, queue, scheduling
from orchestration.errors import KeyTaken, LimitInvalid, ScheduleInvalid
from orchestration.queue import limits, schedules
from registry import renaming, tasks
from registry.errors import NotFound
from registry.session import Sessions
from tests import learning_world as world
from tests import registry_world as recorded
from tests.command_line import typed


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A backbone, two datasets and one task that waits, as job 1."""
    folder = tmp_path_factory.mktemp("hostile")
    made, _ = create_workspace(folder / "affinery-workspace")
    backbone = world.tiny_backbone(folder / "tiny.safetensors")
    additions.add_backbone(made.sessions, made.store, backbone, "tiny")
    with made.sessions.begin() as session:
        for name in ("digits", "letters"):
            recorded.dataset(session, name)
    add(made, "digits", key="first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling, "check_dataset", lambda *_: None)  # their files are not there
        yield made
    made.sessions.engine.dispose()


def add(space: Workspace, name: str, source: str | None = None, **given: object) -> str:
    return scheduling.schedule(
        space.sessions,
        [name],
        [source or name],
        backbone="tiny",
        kind="affiner",
        config={},
        recipe={},
        **given,  # type: ignore[arg-type]
    ).id


def known(ledger: Sessions) -> tuple[list[str], int]:
    with ledger.read() as session:
        return [task.name for task in tasks.list_all(session)], len(queue.list_all(session))


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--priority", "99999999999999999999", "priority: 99999999999999999999 is not a whole number"),
        ("--priority", "-2147483648", "priority: -2147483648 is not a whole number"),
        ("--workers", "100000000000000000000", "workers: 100000000000000000000 is not a whole number"),
        ("--cpus", "inf", "cpus: inf is no amount"),
        ("--gpus", "inf", "gpus: inf is no amount"),
        ("--memory", "inf", "--memory: inf GiB is no amount"),
        ("--memory", "1e300", "--memory: 1e+300 GiB is no amount"),
        ("--key", "", "key: has 0 characters"),
        ("--key", "k" * 201, "key: has 201 characters"),
        ("--strategy", "co-trained", "strategy: 'letters' is alone in its job"),
        ("--run-at", "9999-12-31T23:59-12:00", "--run-at: 9999-12-31T23:59 is too far away"),
        ("--run-at", "0001-01-01T00:00+12:00", "--run-at: "),
    ],
)
def test_a_number_or_a_time_that_no_database_holds_is_one_error(
    space: Workspace, capfd: pytest.CaptureFixture[str], option: str, value: str, told: str
) -> None:
    before = known(space.sessions)
    asked = ["letters", "--backbone", "tiny", option, value, "--workspace", space.folder]
    assert typed("task", "add", *asked, "--dry-run") == 2
    assert typed("task", "add", *asked) == 2
    assert capfd.readouterr().err.count(told) == 2
    assert known(space.sessions) == before


def test_a_priority_may_be_typed_with_its_sign_and_has_its_bounds(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert typed("job", "priority", "1", "-5", "--workspace", space.folder) == 0
    assert typed("job", "priority", "1", "99999999999", "--workspace", space.folder) == 2
    assert "priority: 99999999999 is not a whole number" in capfd.readouterr().err
    with space.sessions.read() as session:
        assert queue.get(session, "1").priority == -5


@pytest.mark.parametrize(
    "beside",
    [
        ("--priority", "5"),
        ("--apart",),
        ("--strategy", "parallel"),
        ("--workers", "2"),
        ("--cpus", "1"),
        ("--gpus", "0"),
        ("--memory", "0"),
        ("--rank", "4"),
        ("--condition", "canny"),
        ("--image-size", "8"),
        ("--after", "1"),
        ("--key", "k"),
        ("--set", "batch=2"),
    ],
)
def test_what_is_typed_beside_a_plan_is_refused_and_not_left_unheard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], beside: tuple[str, ...]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("backbone: tiny\njobs: [{task: letters}]\n")
    assert typed("task", "add", "--from", plan, *beside) == 2
    said = capfd.readouterr().err
    assert "--from: the plan says all of it" in said
    assert said.count("--") >= 3


def test_a_key_of_one_job_schedules_no_other_tasks_and_says_so(space: Workspace) -> None:
    before = known(space.sessions)
    with pytest.raises(KeyTaken, match="'first' is that of job 1"):
        add(space, "letters", key="first")
    assert known(space.sessions) == before


def test_what_stands_differently_beside_a_key_that_is_known_is_told(space: Workspace) -> None:
    notes: list[str] = []
    asked = {"backbone": "tiny", "kind": "lora", "config": {}, "recipe": {"steps": 9}, "key": "first"}
    scheduling.schedule(space.sessions, ["digits"], ["digits"], on_note=notes.append, **asked)  # type: ignore[arg-type]
    assert "stays as it is: steps" in notes[0]
    assert notes[0].endswith("digits as affiner and not lora")


def test_a_key_is_known_again_after_its_task_was_renamed(space: Workspace) -> None:
    first = add(space, "signs", "letters", key="signs")
    with space.sessions.begin() as session:
        queue.cancel(session, first)
        renaming.rename(session, "task:signs", "runes")
    assert add(space, "signs", "letters", key="signs") == first
    assert add(space, "runes", "letters", key="signs") == first


def test_a_schedule_takes_five_fields_and_not_one_of_seconds(space: Workspace) -> None:
    with pytest.raises(ScheduleInvalid, match="write five fields"), space.sessions.begin() as session:
        schedules.add(session, "often", "* * * * * *", ["digits"], {})
    with pytest.raises(ConfigInvalid, match="priority"), space.sessions.begin() as session:
        schedules.add(session, "first", "0 3 * * *", ["digits"], {}, priority=2**40)


def test_a_schedule_is_of_one_backbone_whose_recipe_it_has(space: Workspace) -> None:
    with space.sessions.begin() as session:
        recorded.backbone(session, "other")
        recorded.task(session, "elsewhere", "other")
    with pytest.raises(ScheduleInvalid, match="several backbones; make a schedule for each"):
        scheduling.schedule_repeatedly(space.sessions, "nightly", "0 3 * * *", ["digits", "elsewhere"], {})


@pytest.mark.parametrize(
    ("scope", "key", "most", "told"),
    [
        ("submitter", "", 1, "is no name"),
        ("submitter", " ada", 1, "is no name"),
        ("submitter", "a\x1b[2J", 1, "is no name"),
        ("submitter", "a" * 5000, 1, "is no name of 1 to 200 characters"),
        ("resource", "memory_bytes", 1e300, "more than can be counted"),
        ("submitter", "ada", 1e300, "more than can be counted"),
        ("submitter", "ada", float("nan"), "is no amount"),
    ],
)
def test_a_limit_that_could_never_mean_anything_is_refused(
    space: Workspace, scope: str, key: str, most: float, told: str
) -> None:
    with pytest.raises(LimitInvalid, match=told) as refused, space.sessions.begin() as session:
        limits.put(session, scope, key, most)
    assert len(str(refused.value)) < 200
    with space.sessions.read() as session:
        assert limits.list_all(session) == []


def test_a_limit_is_taken_away_by_the_name_by_which_it_was_set(space: Workspace) -> None:
    with space.sessions.begin() as session:
        limits.put(session, "backbone", "tiny", 2)
        limits.remove(session, "backbone", "tiny")
        assert limits.list_all(session) == []
        with pytest.raises(NotFound):
            limits.remove(session, "backbone", "tiny")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strategy": "sequential"}, "the 2 tasks of one job train together"),
        ({"strategy": "parallel", "workers": 3}, "3 workers of one training are data-parallel"),
    ],
)
def test_a_strategy_that_would_not_be_followed_is_refused(
    space: Workspace, given: dict[str, object], told: str
) -> None:
    before = known(space.sessions)
    with pytest.raises(ConfigInvalid, match=told):
        scheduling.schedule(
            space.sessions,
            ["one", "two"],
            ["digits", "letters"],
            backbone="tiny",
            kind="affiner",
            config={},
            recipe={},
            **given,  # type: ignore[arg-type]
        )
    assert known(space.sessions) == before


def test_a_rehearsal_says_what_would_keep_a_job_from_running(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["letters", "--backbone", "tiny", "--gpus", "700", "--workspace", space.folder, "--dry-run"]
    assert typed("task", "add", *asked) == 0
    assert "waits for a larger worker" in capfd.readouterr().err


def test_a_training_again_with_its_key_is_the_same_job_and_other_tasks_are_refused(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    add(space, "marks", "letters")
    add(space, "seals", "letters")
    with space.sessions.begin() as session:
        for job in queue.list_all(session):
            if set(job.tasks) & {"marks", "seals"}:
                queue.cancel(session, job.id)
    later = ["--run-at", "2099-01-31T03:00+00:00", "--timeout", "60", "--key", "again", "--json"]
    told = []
    for _ in range(2):
        assert typed("task", "train", "marks", *later, "--workspace", space.folder) == 0
        told.append(json.loads(capfd.readouterr().out))
    assert told[0]["id"] == told[1]["id"]
    assert told[0]["run_at"].startswith("2099-01-31T03:00")
    assert typed("task", "train", "seals", "--key", "again", "--workspace", space.folder) == 2
    assert "'again' is that of job" in capfd.readouterr().err


def test_a_key_of_a_training_or_of_another_chore_schedules_no_chore(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    there = ["--workspace", space.folder]
    assert typed("job", "add", "verify", "--key", "first", *there) == 2
    assert "'first' is that of job 1 (digits); verify cannot" in capfd.readouterr().err
    later = ["--run-at", "2099-01-31T03:00", *there]
    assert typed("job", "add", "verify", "task:digits", "--key", "check", *later) == 0
    assert typed("job", "add", "verify", "task:digits", "--key", "check", *there) == 0
    capfd.readouterr()
    assert typed("job", "add", "verify", "--key", "check", *there) == 2
    assert "'check' is that of job" in capfd.readouterr().err


def test_a_plan_says_when_and_a_long_list_of_tasks_has_a_key_too(
    space: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"a task with a rather long name, number {number}" for number in range(8)]
    plan = tmp_path / "plan.yaml"
    tasks_of = "".join(f"\n      - {{name: '{name}', dataset: letters}}" for name in names)
    plan.write_text(f"backbone: tiny\njobs:\n  - run_at: 2099-01-31T03:00+01:00\n    tasks:{tasks_of}\n")
    found = []
    for _ in range(2):
        assert typed("task", "add", "--from", plan, "--workspace", space.folder, "--json") == 0
        found.append(json.loads(capfd.readouterr().out)[0])
    assert [job["new"] for job in found] == [True, False]
    assert found[0]["run_at"].startswith("2099-01-31T02:00")
    plan.write_text("backbone: tiny\njobs:\n  - task: digits\n    run_at: 7\n")
    assert typed("task", "add", "--from", plan, "--workspace", space.folder) == 2
    assert "line 4, jobs[0].run_at" in capfd.readouterr().err

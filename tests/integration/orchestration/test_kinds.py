"""Jobs that train nothing, through the real worker and driver: one result each, whatever becomes of them."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import affinery
from affinery.backbones.files import load_backbone, save_backbone
from orchestration import additions, chores, composing, driver, failpoints, hearts, queue, retention
from orchestration import worker as supervision
from orchestration.errors import LeaseLost, NothingLearnt, TimedOut
from orchestration.jobs import Capacity, JobRecord, Order
from orchestration.obstacles import obstacles
from orchestration.planner import Machine, Share
from orchestration.queue import holding, limits
from orchestration.services import Services
from orchestration.talk import Teller, unpacked
from orchestration.worker import Worker
from registry import backbones, evaluations, events, exports, renaming, tasks
from registry.digests import digest_of
from registry.errors import NotFound
from tests import learning_world as world
from tests.learnt_space import learn

pytestmark = pytest.mark.timeout(300)
ROOM = Capacity(2, 0, 8 << 30)
EVALUATE = chores.Evaluation(adapters=["shapes"], samples=4)
EXPORT = chores.Export(composition="alone")
REBASE = chores.Rebase(old="tiny@1", new="tiny@2")
VERIFY = chores.Verification()
RETENTION = chores.Retention(backbone="tiny@1", samples=4)
ALL = (EVALUATE, EXPORT, REBASE, VERIFY, RETENTION)
each_kind = pytest.mark.parametrize("chore", ALL, ids=lambda chore: chore.KIND)


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Path:
    """A workspace with a task learnt on tiny@1, a composition of it, and a tiny@2."""
    import torch

    folder = tmp_path_factory.mktemp("published") / "space"
    services = world.make_space(folder, sqlite_template, mlflow_template, tiny_backbone)
    world.add_dataset(services, world.image_folder(folder.parent / "shapes", "x", "y"), "shapes")
    world.schedule(services, "shapes", steps=2)
    learn(services, folder.parent / "learnt")
    composing.compose_tasks(services.sessions, "alone", ["shapes"])
    newer = load_backbone(tiny_backbone)
    with torch.no_grad():
        for parameter in newer.parameters():
            parameter.add_(0.01)
    save_backbone(newer, folder.parent / "newer")
    additions.add_backbone(services.sessions, services.store, folder.parent / "newer", "tiny")
    services.sessions.engine.dispose()
    return folder


@pytest.fixture
def space(tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """A copy of it, in which retries, requests and heartbeats wait for nothing."""
    monkeypatch.setattr(holding, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(hearts, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(supervision, "IDLE_SECONDS", 0.1)
    shutil.copytree(published, tmp_path / "space")
    services = world.open_space(tmp_path / "space")
    yield services
    services.sessions.engine.dispose()


def one_result(services: Services, job: JobRecord) -> dict[str, Any]:
    """What stands in the registry because of a job, found to be there once. → the job's own result"""
    now = world.job(services, job.id)
    assert now.state == "done", now.error
    result: dict[str, Any] = (now.progress or {})["result"]
    with services.sessions.read() as session:
        match job.kind:
            case "evaluate":
                [made] = evaluations.list_for(session, "shapes")
                assert result == {"shapes@1": made.results}
                assert made.protocol_digest == digest_of(made.protocol)
                assert (made.protocol["samples"], made.protocol["extractor"]["name"]) == (4, "recogniser")
                assert made.results["samples"] == 4
            case "export":
                [bundle] = exports.list_all(session)
                assert (bundle.digest, bundle.path) == (result["digest"], result["path"])
                assert affinery.draw(affinery.load(bundle.path), "shapes", "x", n=2).shape == (2, 1, 16, 16)
            case "rebase":
                [successor] = tasks.list_all(session, backbone="tiny@2")
                assert (successor.name, successor.predecessor) == ("shapes.tiny-2", "shapes")
                [training] = queue.page(session, kinds=["train"], states=["queued"])
                assert training.tasks == ("shapes.tiny-2",)
                assert [step["job"] for step in result["tasks"]] == [training.id]
            case "retention":
                [stage] = evaluations.list_for(session, "shapes")
                assert (stage.job_id, result["stages"], result["tasks"]) == (job.id, ["shapes@1"], ["shapes"])
                assert result["matrix"] == [[stage.results["KD[recogniser]"]["mean"]]]
                backbone = backbones.get(session, "tiny@1")
                kept = retention.Kept(services.evaluations, backbone)
                assert json.loads((kept.folder / "retention.json").read_text()) == result
                assert len(events.newest(session, kind="backbone.measured")) == 1
                last = retention.newest(session, backbone)
                assert last is not None
                assert last[1].to_json() == result
                assert kept.picture.read_bytes().startswith(b"\x89PNG")
            case _:
                assert (result["sound"], result["findings"]) == (True, [])
    return result


def nothing_written(services: Services) -> None:
    with services.sessions.read() as session:
        assert evaluations.list_for(session, "shapes") == []
        assert exports.list_all(session) == []
        assert tasks.list_all(session, backbone="tiny@2") == []
        assert events.newest(session, kind="backbone.measured") == []


def add(services: Services, chore: chores.Chore, **job: Any) -> JobRecord:
    return chores.schedule(services.sessions, chore, **job).job


def work(services: Services, heard: world.Heard) -> int:
    """Does the next jobs until none but trainings are left. → how many were done"""
    done = 0
    with services.sessions.read() as session:
        open_jobs = [job.id for job in queue.unfinished(session) if job.kind != "train"]
    worker = Worker(services, heard, given=ROOM)
    while any(world.job(services, job_id).state in ("queued", "running") for job_id in open_jobs):
        ended = worker.run_next()
        done += ended is not None and ended.state == "done"
    return done


@each_kind
@pytest.mark.slow
def test_a_job_that_is_killed_before_its_commit_and_again_after_it_has_exactly_one_result(
    space: Services, chore: chores.Chore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = f"before-commit=kill@{tmp_path / 'first'}, after-commit=kill@{tmp_path / 'second'}"
    monkeypatch.setenv(failpoints.VARIABLE, points)
    job = add(space, chore)
    heard = world.Heard()
    assert work(space, heard) == 1, heard.failures
    assert (tmp_path / "second").exists()
    with space.sessions.read() as session:
        assert [each.outcome for each in queue.attempts(session, job.id)] == ["failed", "done"]
    one_result(space, job)
    assert [state for _, _, state in heard.failures] == ["queued"]


@each_kind
def test_a_zombie_cannot_write_its_result_beside_its_successors(space: Services, chore: chores.Chore) -> None:
    job = add(space, chore)
    with space.sessions.begin() as session:
        zombie = queue.claim(session, "zombie")
        assert zombie is not None
        queue.owners_gone(session, ["zombie"])
        queue.give_up(session)
        successor = queue.claim(session, "successor")
        assert successor is not None
        assert successor.fence > zombie.fence
    told: list[dict[str, Any]] = []
    for held in (zombie, successor, zombie):
        driver.run(space, held, Share(1), Teller(told.append))
    ends = [entry for entry in told if entry["event"] in ("failed", "done")]
    assert [entry["event"] for entry in ends] == ["failed", "done", "failed"]
    refusals = [unpacked(entry["error"]) for entry in ends if entry["event"] == "failed"]
    assert all(type(error).__name__ in ("LeaseLost", "StaleFence") for error in refusals)
    assert isinstance(unpacked(ends[2]["error"]), LeaseLost) or chore in (EVALUATE, RETENTION)
    one_result(space, job)


class Asking(world.Heard):
    """Asks something of the queue once a driver says what it does."""

    def __init__(self, ask: Callable[[JobRecord], object]) -> None:
        super().__init__()
        self.ask = ask

    def stage(self, job: JobRecord, doing: str) -> None:
        super().stage(job, doing)
        self.ask(job)


@pytest.mark.slow
def test_an_evaluation_that_is_cancelled_stops_before_the_next_adapter_and_records_nothing(
    space: Services,
) -> None:
    job = add(space, chores.Evaluation(adapters=["shapes"] * 50, samples=4))

    def cancel(asked: JobRecord) -> None:
        with space.sessions.begin() as session:
            queue.cancel(session, asked.id)

    heard = Asking(cancel)
    assert work(space, heard) == 0
    assert world.job(space, job.id).state == "cancelled"
    assert len(heard.stages) < 50
    nothing_written(space)


def test_an_evaluation_that_takes_too_long_is_ended_with_the_reason_and_records_nothing(
    space: Services,
) -> None:
    job = add(
        space, chores.Evaluation(adapters=["shapes"] * 50, samples=4), timeout_seconds=1, max_attempts=1
    )
    heard = world.Heard()
    assert work(space, heard) == 0
    ((_, error, state),) = heard.failures
    assert (isinstance(error, TimedOut), state) == (True, "dead")
    assert "took longer than the 1 s" in str(world.job(space, job.id).error)
    nothing_written(space)


@pytest.mark.slow
def test_a_matrix_whose_job_is_cancelled_is_not_kept_nor_any_of_its_figures(
    space: Services,
) -> None:
    cancelled = add(space, RETENTION)

    def cancel(asked: JobRecord) -> None:
        with space.sessions.begin() as session:
            queue.cancel(session, asked.id)

    assert work(space, Asking(cancel)) == 0
    assert world.job(space, cancelled.id).state == "cancelled"
    nothing_written(space)


def test_a_backbone_on_which_nothing_was_learnt_has_no_matrix_to_be_scheduled(space: Services) -> None:
    with pytest.raises(NothingLearnt, match="tiny@2"):
        add(space, chores.Retention(backbone="tiny@2"))
    with space.sessions.read() as session:
        assert queue.unfinished(session) == []


def test_what_verify_finds_is_its_result_and_fails_nothing(space: Services) -> None:
    with space.sessions.read() as session:
        [learnt] = tasks.list_all(session)
        blob = next(iter(session.connection().exec_driver_sql("SELECT blob_digest FROM adapter")))[0]
    path = space.store.path(blob)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    job = add(space, VERIFY)
    assert work(space, world.Heard()) == 1
    now = world.job(space, job.id)
    result = (now.progress or {})["result"]
    assert (now.state, result["sound"]) == ("done", False)
    assert any(blob in finding["where"] or learnt.name in finding["where"] for finding in result["findings"])


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("evaluate", {}, "adapters: Field required"),
    ("evaluate", {"adapters": "shapes"}, "adapters: Input should be a valid list"),
    ("evaluate", {"adapters": ["nothing"]}, "nothing"),
    ("evaluate", {"adapters": ["shapes"], "samples": 0}, "samples: Input should be greater than"),
    ("export", {"composition": 7}, "composition: Input should be a valid string"),
    ("export", {"composition": "alone", "out": "/proc/nowhere/bundle"}, "out: what it names cannot be made"),
    ("rebase", {"old": "tiny@1"}, "new: Field required"),
    ("rebase", {"old": "tiny@1", "new": "tiny@1"}, "the same backbone"),
    ("rebase", {"old": "tiny@1", "new": "tiny@2", "only": ["nothing"]}, "nothing"),
    ("retention", {"backbone": "nothing"}, "nothing"),
    ("retention", {"backbone": "tiny@2"}, "Nothing was learnt on tiny@2 yet"),
    ("retention", {"backbone": "tiny@1", "steps": 0}, "steps: Input should be greater than"),
    ("verify", {"reff": "shapes"}, "reff: Extra inputs are not permitted"),
    ("verify", {"ref": "nothing"}, "nothing"),
]


def test_what_cannot_be_done_as_asked_is_dead_at_once_with_one_reason(space: Services) -> None:
    with space.sessions.begin() as session:
        orders = [Order(str(uuid.uuid4()), kind, payload=payload) for kind, payload, _ in WRONG]
        jobs = queue.enqueue_all(session, orders)
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 0
    for job, (_, payload, reason) in zip(jobs, WRONG, strict=True):
        now = world.job(space, job.id)
        assert (now.state, now.attempts) == ("dead", 1), payload
        assert reason in str(now.error), payload
        assert len(str(now.error).splitlines()) == 1
    nothing_written(space)


def test_a_chore_is_checked_when_it_is_scheduled_unless_it_waits_for_what_makes_it(space: Services) -> None:
    absent = chores.Evaluation(adapters=["shapes@2"])
    with pytest.raises(NotFound, match="shapes"):
        add(space, absent)
    with space.sessions.read() as session:
        assert queue.unfinished(session) == []
    first = add(space, VERIFY, key="once")
    waiting = add(space, absent, after=[first.id], priority=3)
    assert (waiting.needs, waiting.priority, waiting.payload) == ((first.id,), 3, {"adapters": ["shapes@2"]})
    again = chores.schedule(space.sessions, VERIFY, key="once")
    assert (again.job.id, again.new) == (first.id, False)


def test_what_a_limit_or_a_machine_keeps_from_ever_running_is_told(space: Services) -> None:
    large = add(space, VERIFY, cpus=64.0)
    closed = add(space, EVALUATE)
    free = add(space, VERIFY)
    here = Machine(2, 0, 8 << 30)
    with space.sessions.begin() as session:
        assert list(obstacles(session, queue.page(session), here)) == [large.id]
        assert "needs 64 processors, this machine has 2 proc" in obstacles(session, [large], here)[large.id]
        limits.put(session, "backbone", "*", 0)
        limits.put(session, "resource", "cpus", 2)
        told = obstacles(session, [large, closed, free], here)
    assert told == {
        large.id: "never runs: it takes 64 of cpus, and at most 2 may run; "
        "affinery queue limit set resource cpus MORE",
        closed.id: "never runs: no job of the backbone tiny@1 may run; "
        "affinery queue limit set backbone '*' MORE",
    }


def test_what_jobs_name_may_be_called_otherwise_by_the_time_they_are_done(space: Services) -> None:
    measure, ship, check = (add(space, each) for each in (EVALUATE, EXPORT, chores.Verification(ref="alone")))
    late = add(space, chores.Verification(ref="composition:alone@1"), after=[measure.id])
    rebase = add(space, REBASE)
    with space.sessions.begin() as session:
        for ref, name in (
            ("task:shapes", "forms"),
            ("composition:alone", "single"),
            ("backbone:tiny", "small"),
        ):
            renaming.rename(session, ref, name)
    heard = world.Heard()
    worker = world.worker_here(space, heard)
    while world.job(space, rebase.id).state in (
        "queued",
        "running",
    ):  # its training, which comes then, needs Ray
        worker.run_next()
    told = [world.job(space, job.id) for job in (measure, ship, check, late, rebase)]
    assert [job.state for job in told] == ["done"] * 5, heard.failures
    judged, exported, sound, later, moved = ((job.progress or {})["result"] for job in told)
    assert list(judged) == ["forms@1"]
    assert exported["composition"] == "single@1"
    assert sound["sound"]
    assert later["sound"]
    assert [(step["task"], step["learner"]) for step in moved["tasks"]] == [("forms", "forms.small-2")]
    with space.sessions.read() as session:
        assert [each.ref for each in exports.list_all(session)] == ["single@1"]
        assert len(evaluations.list_for(session, "forms")) == 1

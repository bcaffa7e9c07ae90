"""Trainings through one Ray, paused, torn or side by side: each ends with the bytes of a plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration import failpoints, hearts, queue
from orchestration.certificates import Certificate
from orchestration.jobs import Capacity, JobRecord
from orchestration.ray_train import ProgressLine
from orchestration.services import Services
from orchestration.worker import Worker
from registry import adapters
from registry.records import AdapterRecord
from tests import learning_world as world

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
SNAPSHOT = "checkpoint_manager_snapshot.json"
STEPS = 400
TWO = Capacity(2, 0, 4 << 30)


@pytest.fixture
def space(services: Services, local_ray: str, monkeypatch: pytest.MonkeyPatch) -> Services:
    """A workspace with a Ray; one thread a training, here and there."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(hearts, "BEAT_SECONDS", 0.1)
    return replace(services, ray_address=local_ray)


def published(services: Services, ref: str) -> bytes:
    with services.sessions.read() as session:
        record = adapters.get(session, ref)
    return services.store.path(record.blob_digest).read_bytes()


def unbroken(services: Services, name: str, recipe: dict[str, object]) -> bytes:
    """The adapter of the same training, done in this process without a break."""
    with services.sessions.begin() as session:
        again = queue.enqueue(session, [name], recipe)
    return (world.train_here(services, again.id) / "adapter-0.safetensors").read_bytes()


class OnceAt(world.Heard):
    """Does something when a training is so far."""

    def __init__(self, step: int, act: Callable[[JobRecord], object]) -> None:
        super().__init__()
        self.step, self.act = step, act

    def progress(self, job: JobRecord, line: ProgressLine) -> None:
        super().progress(job, line)
        if line.step >= self.step:
            self.step = STEPS + 1
            self.act(job)


def test_a_training_that_was_paused_goes_on_past_a_torn_snapshot_of_rays_to_the_same_bytes(
    space: Services, tmp_path: Path
) -> None:
    world.add_dataset(space, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    job = world.schedule(space, "shapes", steps=STEPS, batch=32)

    def pause(running: JobRecord) -> None:
        with space.sessions.begin() as session:
            queue.pause(session, running.id)

    heard = OnceAt(STEPS // 10, pause)
    assert Worker(space, heard).drain() == 0
    assert world.job(space, job.id).state == "paused"
    assert heard.steps[-1] < STEPS
    (snapshot,) = (space.runs / job.id).rglob(SNAPSHOT)
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    with space.sessions.begin() as session:
        queue.resume(session, job.id)
    again = world.Heard()
    assert Worker(space, again).drain() == 1, again.failures
    assert again.resumed[0] >= STEPS // 10
    assert published(space, "shapes@1") == unbroken(space, "shapes", job.recipe)


def test_two_trainings_share_one_worker_and_each_is_what_it_is_alone(
    space: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to report waits until the other is published, which one after the other would never be."""
    mark = tmp_path / "mark"
    monkeypatch.setenv(failpoints.VARIABLE, f"training:1=pause@{mark}")
    for seed, name in enumerate(("shapes", "shades")):
        world.add_dataset(space, world.image_folder(tmp_path / name, "x", "y", seed=seed), name)
    recipe = world.schedule(space, "shapes").recipe
    world.schedule(space, "shades")
    with space.sessions.begin() as session:
        for job in queue.list_all(session):
            queue.cancel(session, job.id)
        for name in ("shapes", "shades"):
            queue.enqueue(session, [name], recipe, strategy="parallel", cpus=0.5)

    class Freeing(world.Heard):
        def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None:
            super().published(job, adapters, certificate)
            mark.unlink(missing_ok=True)

    heard = Freeing()
    assert Worker(space, heard, given=TWO).drain() == 2, heard.failures
    monkeypatch.delenv(failpoints.VARIABLE)
    for name in ("shapes", "shades"):
        assert published(space, f"{name}@1") == unbroken(space, name, recipe)

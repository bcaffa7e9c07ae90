"""A worker's own Ray: a failed start is made again; what cannot be reached costs a job none of its tries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration import failpoints, queue
from orchestration import worker as supervision
from orchestration.errors import RayAddressInvalid, RayUnavailable
from orchestration.local_ray import LocalRay, address_in
from orchestration.services import Services
from orchestration.worker import Worker
from tests import learning_world as world
from tests.integration.orchestration.test_supervision import left_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def raylets(word: str) -> int:
    command = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in left_of(word)]
    return command.count("raylet")


def test_a_start_of_ray_that_fails_leaves_nothing_behind_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv(failpoints.VARIABLE, f"ray-started=raise@{mark}")
    monkeypatch.setenv("AFFINERY_TEST_MARK", word := tmp_path.name + str(id(mark)))
    here = LocalRay(1, 0)
    try:
        address = address_in(Path(here.ready()))
        assert mark.exists()
        assert ":" in address
        assert raylets(word) == 1
    finally:
        here.stop()
    assert raylets(word) == 0


def test_a_ray_that_cannot_be_reached_is_told_and_costs_the_job_none_of_its_tries(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "RAY_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(supervision, "RAY_TRIES", 2)
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    job = world.schedule(services, "shapes")
    heard = world.Heard()
    with pytest.raises(RayUnavailable, match=r"127\.0\.0\.1:1"):
        Worker(replace(services, ray_address="127.0.0.1:1"), heard).drain()
    assert [state for _, _, state in heard.failures] == ["queued", "queued"]
    left = world.job(services, job.id)
    assert (left.state, left.failures, left.attempts) == ("queued", 0, 2)
    assert "127.0.0.1:1" in str(left.why)
    with services.sessions.read() as session:
        assert [attempt.outcome for attempt in queue.attempts(session, job.id)] == ["interrupted"] * 2


def test_an_address_that_no_driver_can_use_is_refused_before_a_job_is_claimed(services: Services) -> None:
    with pytest.raises(RayAddressInvalid):
        Worker(replace(services, ray_address="ray://head:10001"), world.Heard())

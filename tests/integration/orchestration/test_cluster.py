"""A Ray cluster of one machine, with a token: a task shared out over two workers, and what never fits."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affinery.adapters.files import read_adapter
from orchestration import queue
from orchestration.errors import NeverFits
from orchestration.jobs import Capacity
from orchestration.services import Services
from orchestration.worker import Worker
from registry import adapters
from tests import learning_world as world
from tests.unit.trainers.test_ranks import apart

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
HEAD = """
import sys
import ray
from orchestration.driver import end_with
end_with(int(sys.argv[1]))
told = ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR",
                object_store_memory=80_000_000)
print(told.address_info["address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head that lets in whoever has its token. → its address"""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdin is not None
    assert head.stdout is not None
    yield head.stdout.readline().strip()
    head.stdin.close()
    head.wait(60)


def test_a_task_shared_out_over_two_workers_of_a_cluster_is_the_one_that_one_worker_learns(
    services: Services, cluster: str, tmp_path: Path
) -> None:
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    alone = world.schedule(services, "shapes")
    finished = read_adapter(world.train_here(services, alone.id) / "adapter-0.safetensors")
    with services.sessions.begin() as session:
        queue.cancel(session, alone.id)
        more: dict[str, Any] = {"strategy": "data-parallel", "workers": 2}
        shared = queue.enqueue(session, ["shapes"], alone.recipe, cpus=2.0, **more)
    heard = world.Heard()
    space = replace(services, ray_address=cluster)
    assert Worker(space, heard, given=Capacity(4, 0, 8 << 30)).drain() == 1, heard.failures
    assert heard.steps == list(range(1, 9))
    with services.sessions.read() as session:
        record = adapters.get(session, "shapes@1")
    assert record.provenance["strategy"] == "data-parallel"
    assert record.job_id == shared.id
    together = read_adapter(services.store.path(record.blob_digest))
    assert apart(finished, together) <= 1e-5

    with services.sessions.begin() as session:
        too_much = queue.enqueue(session, ["shapes"], alone.recipe, cpus=64.0, **more)
    heard = world.Heard()
    assert Worker(space, heard, given=Capacity(64, 0, 8 << 30)).drain() == 0
    ((_, error, state),) = heard.failures
    assert (isinstance(error, NeverFits), state) == (True, "dead")
    assert "2 × 32 processors" in str(world.job(services, too_much.id).error)

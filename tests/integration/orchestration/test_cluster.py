"""A Ray cluster of one machine, with a token: a task shared out over two workers, and what never fits."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from affinery.adapters.files import read_adapter
from orchestration import queue
from orchestration import worker as supervision
from orchestration.errors import NeverFits, RayUnavailable
from orchestration.jobs import Capacity
from orchestration.services import Services
from orchestration.worker import Worker
from registry import adapters
from tests import learning_world as world
from tests.unit.trainers.test_ranks import apart

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
HEAD_TRIES = 3
HEAD = """
import sys
from orchestration.driver import end_with
end_with(int(sys.argv[1]))
sys.argv = ["ray", "start", "--head", "--block", *sys.argv[2:]]
from ray.scripts.scripts import main
main()
"""


@dataclass(frozen=True)
class Cluster:
    """A head that lets in whoever has its token: where its nodes meet, and where jobs are submitted."""

    address: str
    http: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    token = tmp_path_factory.mktemp("cluster") / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    with pytest.MonkeyPatch.context() as told:
        told.setenv("RAY_AUTH_MODE", "token")
        told.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        told.setenv("RAY_USAGE_STATS_ENABLED", "0")
        told.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")  # nobody waits for what it still does
        told.setenv("OMP_NUM_THREADS", "1")
        told.setenv("PYTHONUNBUFFERED", "1")
        told.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # short, for Ray's sockets
            head, cluster = started_head(folder)
            yield cluster
            head.terminate()
            head.communicate(timeout=60)


def started_head(folder: str) -> tuple[subprocess.Popen[str], Cluster]:
    """Beside other Rays of this machine, whose ports are fixed. Ray waits 30 s, however busy a machine is."""
    for _ in range(HEAD_TRIES):
        meeting, http, agent = free_ports(3)
        ports = (f"--port={meeting}", f"--dashboard-port={http}", f"--dashboard-agent-listen-port={agent}")
        given = ("--node-ip-address=127.0.0.1", "--num-cpus=4", "--object-store-memory=80000000")
        head = subprocess.Popen(
            [sys.executable, "-c", HEAD, str(os.getpid()), *ports, *given, f"--temp-dir={folder}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert head.stdout is not None
        if any("Ray runtime started" in line for line in head.stdout):
            return head, Cluster(f"127.0.0.1:{meeting}", f"http://127.0.0.1:{http}")
        head.wait(60)
    raise AssertionError("Ray did not start")


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def test_a_task_shared_out_over_two_workers_of_a_cluster_is_the_one_that_one_worker_learns(
    services: Services, cluster: Cluster, tmp_path: Path
) -> None:
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    alone = world.schedule(services, "shapes")
    finished = read_adapter(world.train_here(services, alone.id) / "adapter-0.safetensors")
    with services.sessions.begin() as session:
        queue.cancel(session, alone.id)
        more: dict[str, Any] = {"strategy": "data-parallel", "workers": 2}
        shared = queue.enqueue(session, ["shapes"], alone.recipe, cpus=2.0, **more)
    heard = world.Heard()
    space = replace(services, ray_address=cluster.address)
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


def test_a_training_that_is_submitted_over_http_learns_the_same_bytes(
    services: Services, cluster: Cluster, tmp_path: Path
) -> None:
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    here = world.schedule(services, "shapes")
    alone = (world.train_here(services, here.id) / "adapter-0.safetensors").read_bytes()
    with services.sessions.begin() as session:
        queue.cancel(session, here.id)
        queue.enqueue(session, ["shapes"], here.recipe, cpus=1.0)
    heard = world.Heard()
    assert Worker(replace(services, ray_address=cluster.http), heard).drain() == 1, heard.failures
    assert heard.steps == list(range(1, 9))
    with services.sessions.read() as session:
        record = adapters.get(session, "shapes@1")
    assert services.store.path(record.blob_digest).read_bytes() == alone


def test_an_error_of_a_submitted_training_arrives_as_itself(
    services: Services, cluster: Cluster, tmp_path: Path
) -> None:
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    recipe = world.schedule(services, "shapes").recipe
    with services.sessions.begin() as session:
        queue.cancel(session, queue.list_all(session)[0].id)
        queue.enqueue(session, ["shapes"], recipe, cpus=64.0)
    heard = world.Heard()
    given = Capacity(64, 0, 8 << 30)
    assert Worker(replace(services, ray_address=cluster.http), heard, given=given).drain() == 0
    ((_, error, state),) = heard.failures
    assert (isinstance(error, NeverFits), state) == (True, "dead")
    assert "the machines of the cluster have 4 processors" in str(error)


def in_a_process_of_its_own(work: str, cluster: Cluster, folder: Path) -> None:
    """A process that has loaded Ray asks for tokens for ever, also those of a Ray that has none."""
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-m", "tests.submitting", work, cluster.http, folder], cwd=root, check=True
    )


def test_a_cluster_that_does_not_see_the_workspace_is_told(cluster: Cluster, tmp_path: Path) -> None:
    in_a_process_of_its_own("unseen", cluster, tmp_path / "unseen")


def test_a_submitted_training_is_stopped_by_its_driver_and_by_the_next_attempt(
    cluster: Cluster, tmp_path: Path
) -> None:
    in_a_process_of_its_own("stopped", cluster, tmp_path / "stopped")


@pytest.mark.parametrize("way", ["address", "http"])
def test_a_cluster_refuses_a_wrong_token_and_the_job_keeps_its_tries(
    services: Services, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    wrong.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    monkeypatch.setattr(supervision, "RAY_TRIES", 1)
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    job = world.schedule(services, "shapes")
    address = getattr(cluster, way)
    with pytest.raises(RayUnavailable, match=r"(?i)auth|token"):
        Worker(replace(services, ray_address=address), world.Heard()).drain()
    left = world.job(services, job.id)
    assert (left.state, left.failures) == ("queued", 0)

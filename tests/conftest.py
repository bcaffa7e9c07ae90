"""Fixtures that tests in several folders share, and the order in which their files are handed out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is loaded: other tests run beside these, and threads that wait by spinning would starve them.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A shell has what it starts in the background ignore Ctrl-C, and so all that these tests start:
# those of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("tests.postgres",)
HERE = Path(__file__).parent
LONGEST = (
    "integration/team/test_team.py",
    "acceptance/test_demo.py",
    "integration/faults/test_processes.py",
    "integration/orchestration/test_cluster.py",
    "integration/orchestration/test_ray_faults.py",
    "unit/affinery/test_formats.py",
    "integration/orchestration/test_worker.py",
    "integration/orchestration/test_interruptions.py",
    "integration/orchestration/test_retraining.py",
    "contract/test_kinds_on_backbones.py",
    "integration/faults/test_publishing.py",
    "browser/test_newcomer.py",
    "integration/api/test_client.py",
    "integration/orchestration/test_queue_clocks.py",
    "integration/orchestration/test_kinds.py",
    "integration/orchestration/test_conditions.py",
    "integration/test_queue_benchmark.py",
    "integration/orchestration/test_tracking_faults.py",
    "integration/orchestration/test_ray_processes.py",
    "integration/orchestration/test_local_ray.py",
    "integration/orchestration/test_queue_processes.py",
    "integration/test_serving_on_ray.py",
    "integration/test_benchmarks.py",
    "integration/orchestration/test_worker_memory.py",
    "unit/test_benchmarks_papers.py",
    "unit/test_guides.py",
)
"""The files that take longest, which are begun first where several processes share the work.

Begun last, one of them would keep one process busy while the others have nothing left to do.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in places), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has brought up, which takes it ten seconds."""
    from orchestration.tracking import open_tracking

    folder = tmp_path_factory.mktemp("mlflow")
    open_tracking(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", folder / "spool").prepare()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import learning_world as world

    return world.tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny.safetensors")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """One Ray on this machine, with two logical processors, for every test that trains. → its address"""
    from orchestration.local_ray import LocalRay, address_in

    here = LocalRay(2, 0)
    yield address_in(Path(here.ready()))
    import ray

    ray.shutdown()  # a process that is connected to a Ray that ends, ends with it
    here.stop()

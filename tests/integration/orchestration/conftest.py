"""Workspaces to learn in, copied for each test, and one Ray for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.local_ray import LocalRay, address_in
from orchestration.services import Services
from tests import learning_world as world


@pytest.fixture
def services(
    tmp_path: Path, sqlite_template: Path, mlflow_template: Path, tiny_backbone: Path
) -> Iterator[Services]:
    """A workspace with the tiny backbone in it, and nothing else."""
    made = world.make_space(tmp_path / "space", sqlite_template, mlflow_template, tiny_backbone)
    yield made
    made.sessions.engine.dispose()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """One Ray on this machine, with two logical processors, for every test that trains. → its address"""
    here = LocalRay(2, 0)
    yield address_in(Path(here.ready()))
    import ray

    ray.shutdown()  # a process that is connected to a Ray that ends, ends with it
    here.stop()

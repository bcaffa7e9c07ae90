"""Workspaces to learn in, copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.services import Services
from tests import learning_world as world


@pytest.fixture(scope="session")
def empty_space(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Path:
    """A workspace with the tiny backbone in it, and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "space"
    made = world.make_space(folder, sqlite_template, mlflow_template, tiny_backbone)
    made.sessions.engine.dispose()
    return folder


@pytest.fixture
def services(tmp_path: Path, empty_space: Path) -> Iterator[Services]:
    """Such a workspace."""
    shutil.copytree(empty_space, tmp_path / "space")
    made = world.open_space(tmp_path / "space")
    yield made
    made.sessions.engine.dispose()

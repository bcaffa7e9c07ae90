"""Everything that is looked at, in order. Without a workspace, the machine alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from affinery_app.doctor import machine, neighbours, registry
from affinery_app.doctor.check import FAIL, OK, Check

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace


def examine(folder: Path | None, *, deep: bool = False) -> Iterator[Check]:
    """One line after another, as soon as each is known.

    folder: the workspace, as commands take it. deep: also what takes seconds: MLflow, DVC and torch are
    loaded, and Ray is started. Raises UrlNotTaken.
    """
    from affinery.errors import UserError
    from affinery_app.errors import UrlNotTaken, WorkspaceInvalid
    from affinery_app.settings import FILE
    from affinery_app.wiring import open_workspace

    try:
        space = open_workspace(folder)
    except UrlNotTaken:
        raise
    except UserError as error:
        mend = None
        if isinstance(error, WorkspaceInvalid):
            mend = f"mend {FILE} by hand, or restore it; affinery init in an empty folder shows how one looks"
        yield Check("workspace", FAIL, str(error), mend)
        yield from machine.gpus(deep)
        yield from machine.memory()
        yield from machine.packages(None)
        return
    yield _folder(space)
    yield from registry.check(space)
    for part in (neighbours.store, neighbours.mlflow, neighbours.dvc, neighbours.ray):
        yield from part(space, deep)
    yield from machine.gpus(deep)
    yield from machine.disk(space)
    yield from machine.memory()
    yield from machine.packages(space)


def _folder(space: Workspace) -> Check:
    if os.access(space.folder, os.W_OK):
        return Check("workspace", OK, str(space.folder))
    mend = "let this user write there, or name another: --workspace"
    return Check("workspace", FAIL, f"{space.folder} cannot be written", mend)

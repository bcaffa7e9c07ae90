"""Pictures that a training or an evaluation left on this machine, and their addresses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from affinery_app.dashboard.visit import address
from affinery_app.task_report import pictures, place_of
from affinery_app.wiring import Workspace
from registry.records import AdapterRecord

SAMPLES = "samples.png"


def samples_of(space: Workspace, session: Session, adapter: AdapterRecord) -> str | None:
    """Where the samples of a version are shown; None where none were drawn here."""
    name = samples_in(pictures(space, adapter, place_of(session, adapter)))
    return None if name is None else place(adapter, name)


def samples_in(found: Mapping[str, Path]) -> str | None:
    """Which of a version's pictures shows its samples: its training's, else the newest evaluation's."""
    if SAMPLES in found:
        return SAMPLES
    measured = [name for name in found if name.startswith(f"{Path(SAMPLES).stem} ")]
    return max(measured, key=lambda name: found[name].stat().st_mtime, default=None)


def place(adapter: AdapterRecord, name: str) -> str:
    """The address of a picture."""
    return address("adapters", adapter.ref, "pictures", name)


def file_of(space: Workspace, session: Session, adapter: AdapterRecord, name: str) -> Path | None:
    """A picture's file, by the name under which it is listed and no other."""
    return pictures(space, adapter, place_of(session, adapter)).get(name)

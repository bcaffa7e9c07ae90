"""The main job, end to end: one frozen backbone learns three datasets, two side by side and one afterwards.

Every step may be repeated: what is there already is kept, so an interrupted demo goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from affinery_app.errors import DemoIncomplete
from affinery_app.wiring import Workspace
from orchestration import additions, composing, exports, queue, scheduling
from orchestration.services import Listener
from orchestration.tracking import compositions
from registry import adapters, tasks
from registry.records import AdapterRecord, BackboneRecord, DatasetRecord, ExportRecord

BACKBONE = "tiny-dit"
COMPOSITION = "everything"
TOGETHER, AFTERWARDS = ("digits", "letters"), ("animals",)
TASKS = TOGETHER + AFTERWARDS


@dataclass(frozen=True)
class ShippedDataset:
    """A dataset that comes with Affinery: an archive of class folders, its licence, its source."""

    name: str
    licence: str
    source: str


def shipped_datasets() -> dict[str, ShippedDataset]:
    """By name, what `assets/datasets/index.json` lists."""
    raw = json.loads((files("affinery_app") / "assets/datasets/index.json").read_text(encoding="utf-8"))
    return {name: ShippedDataset(name, entry["licence"], entry["source"]) for name, entry in raw.items()}


def add_shipped_backbone(space: Workspace) -> tuple[BackboneRecord, int]:
    """Registers the backbone that comes with Affinery. → its record and its count of parameters"""
    with as_file(files("affinery_app") / f"assets/backbones/{BACKBONE}.safetensors") as path:
        return additions.add_backbone(space.sessions, space.store, path, BACKBONE)


def add_shipped_dataset(space: Workspace, shipped: ShippedDataset) -> DatasetRecord:
    """Unpacks a shipped archive and adds it as any folder of images is added."""
    with (
        TemporaryDirectory() as scratch,
        as_file(files("affinery_app") / f"assets/datasets/{shipped.name}.zip") as archive,
    ):
        with zipfile.ZipFile(archive) as opened:
            inside = [name for name in opened.namelist() if name.endswith(".png")]
            opened.extractall(scratch, inside)
        record, _ = additions.add_dataset(
            space.sessions,
            space.data,
            Path(scratch),
            name=shipped.name,
            licence=shipped.licence,
            source=shipped.source,
        )
    return record


def schedule_tasks(space: Workspace, recipe: Mapping[str, Any]) -> list[str]:
    """Two tasks together, a third afterwards, as far as not learnt or scheduled yet. → new jobs' ids"""
    fresh: list[str] = []
    before: list[str] = []
    for group in (TOGETHER, AFTERWARDS):
        with space.sessions.read() as session:
            known = {task.name: task for task in tasks.list_all(session)}
            live = [job.id for job in queue.unfinished(session) if set(job.tasks) & set(group)]
        if live:
            before = live
            continue
        if not set(group) & known.keys():
            job = scheduling.schedule(
                space.sessions,
                group,
                group,
                backbone=BACKBONE,
                kind="affiner",
                config={},
                recipe=recipe,
                after=before,
            )
        elif again := [name for name in group if name not in known or known[name].state != "learnt"]:
            job = scheduling.schedule_again(space.sessions, again, recipe)
        else:
            continue
        before = [job.id]
        fresh.append(job.id)
    return fresh


def learn(space: Workspace, listener: Listener) -> None:
    """Runs the queue. Raises DemoIncomplete where a task was not learnt."""
    from orchestration.worker import Worker

    Worker(space.services(), listener).drain()
    with space.sessions.read() as session:
        lacking = [name for name in TASKS if tasks.get(session, name).state != "learnt"]
        errors = [job.why for job in queue.list_all(session) if job.why]
    if lacking:
        raise DemoIncomplete(", ".join(lacking), errors[-1] if errors else "its job is another worker's")


def ship(space: Workspace) -> ExportRecord:
    """Composes the three tasks, has MLflow know them together, and writes the bundle."""
    record = composing.compose_tasks(space.sessions, COMPOSITION, TASKS)
    compositions.tell(space.tracking, space.sessions, record)
    space.tracking.flush_all()
    return exports.export(space.sessions, space.store, exports.Asked(record.ref), space.exports)[0]


def draw_afresh(bundle: Path, picture: Path, each: int) -> None:
    """Loads the bundle in a new process, which knows nothing of the workspace, and draws one mixed batch."""
    command = [
        sys.executable,
        "-m",
        "affinery_app.cli.main",
        "sample",
        str(bundle),
        "--out",
        str(picture),
        "-n",
        str(each),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoIncomplete("drawing from the bundle", done.stderr.strip())


def learnt(space: Workspace) -> list[AdapterRecord]:
    """The newest adapter of each task."""
    with space.sessions.read() as session:
        return [adapters.get(session, name) for name in TASKS]

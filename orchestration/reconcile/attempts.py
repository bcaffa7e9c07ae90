"""Folders of jobs: what nothing needs any more leaves no checkpoints; a folder of no job is told.

Logs and curves stay: they are small, and `affinery job logs` reads them. A job that is dead or cancelled
keeps its checkpoints for a retry, until all of its tasks were learnt by a later job.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestration import queue
from orchestration.driver import LOG
from orchestration.jobs import DEAD, JobRecord
from orchestration.ray_train import PLAN, PROGRESS
from orchestration.reconcile.findings import Finding, Progress
from orchestration.services import Services
from orchestration.tracking import Tracking

NAME = "attempts"
STAYS = frozenset((LOG, PLAN, PROGRESS))


@dataclass(frozen=True)
class Remains:
    """Of a job's folder, what nothing will go on from. why: in words."""

    folder: Path
    why: str
    paths: tuple[Path, ...]
    size_bytes: int

    def clear(self) -> tuple[Path, ...]:
        """Deletes it. → what the system did not let go of"""
        for each in self.paths:
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink(missing_ok=True)
        return tuple(each for each in self.paths if each.exists())


def remains(services: Services) -> list[Remains]:
    """What is left of all jobs whose checkpoints nothing needs any more."""
    with services.sessions.read() as session:
        jobs = {job.id: job for job in queue.list_all(session)}
    learnt, awaited = _learnt_last(jobs), _awaited(services.tracking)
    return [
        found
        for folder in _folders(services)
        if folder.name in jobs and (found := _remains(folder, jobs[folder.name], learnt, awaited))
    ]


def reconcile(services: Services, dry_run: bool, on_progress: Progress) -> Iterator[Finding]:
    with services.sessions.read() as session:
        jobs = {job.id: job for job in queue.list_all(session)}
    learnt, awaited = _learnt_last(jobs), _awaited(services.tracking)
    folders = _folders(services)
    for done, folder in enumerate(folders, start=1):
        job = jobs.get(folder.name)
        if job is None:
            mend = f"if no other registry uses {services.runs}: delete the folder"
            yield Finding(NAME, str(folder), "the registry has no such job", mend=mend)
        elif found := _remains(folder, job, learnt, awaited):
            yield _cleared(found, dry_run)
        on_progress(done, len(folders))


def _folders(services: Services) -> list[Path]:
    return sorted(path for path in services.runs.glob("*") if path.is_dir())


def _remains(
    folder: Path, job: JobRecord, learnt: Mapping[str, int], awaited: Sequence[Path]
) -> Remains | None:
    why = _over(job, learnt)
    if why is None or any(path.is_relative_to(folder) for path in awaited):
        return None
    paths = tuple(path for path in sorted(folder.glob("attempt-*/*")) if path.name not in STAYS)
    files = (path for each in paths for path in (each, *each.rglob("*")) if path.is_file())
    return Remains(folder, why, paths, sum(path.lstat().st_size for path in files)) if paths else None


def _learnt_last(jobs: Mapping[str, JobRecord]) -> dict[str, int]:
    """By task, the number of the last job that learnt it."""
    done = sorted((job for job in jobs.values() if job.state == "done"), key=lambda job: job.number)
    return {task: job.number for job in done for task in job.tasks}


def _over(job: JobRecord, learnt: Mapping[str, int]) -> str | None:
    """Why nothing will go on from its checkpoints; None where something may."""
    if job.state == "done":
        return "its job is done"
    if job.state in DEAD and job.tasks and all(learnt.get(task, 0) > job.number for task in job.tasks):
        return f"its job is {job.state}, and a later one has learnt the same"
    return None


def _awaited(tracking: Tracking) -> list[Path]:
    """Files that are still to be uploaded and of which the spool could make no copy."""
    told = (each for key in tracking.kept.pending() for each in tracking.kept.operations(key))
    return [Path(each["path"]) for each in told if each["op"] == "artifact"]


def _cleared(found: Remains, dry_run: bool) -> Finding:
    what = f"{found.why}, and {found.size_bytes:,} bytes of checkpoints are still there"
    if not dry_run and (left := [f"{each.parent.name}/{each.name}" for each in found.clear()]):
        mend = f"delete {', '.join(left)}: the system refuses it here"
        return Finding(NAME, str(found.folder), what, mend=mend)
    return Finding(NAME, str(found.folder), what, "they were deleted; what was learnt is in the store")

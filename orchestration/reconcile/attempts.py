"""Folders of jobs: what is done leaves no checkpoints; a folder of no job is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestration import queue
from orchestration.reconcile.findings import Finding, Progress
from orchestration.services import Services
from orchestration.tracking import Tracking
from orchestration.tracking.trainings import key_of

NAME = "attempts"


def reconcile(services: Services, dry_run: bool, on_progress: Progress) -> Iterator[Finding]:
    with services.sessions.read() as session:
        jobs = {job.id: job for job in queue.list_all(session)}
    folders = sorted(path for path in services.runs.glob("*") if path.is_dir())
    for done, folder in enumerate(folders, start=1):
        job = jobs.get(folder.name)
        if job is None:
            mend = f"if no other registry uses {services.runs}: delete the folder"
            yield Finding(NAME, str(folder), "the registry has no such job", mend=mend)
        elif job.state == "done" and not _waiting(services.tracking, job.id, job.tasks):
            yield from _cleared(folder, sorted(folder.glob("attempt-*")), dry_run)
        on_progress(done, len(folders))


def _waiting(tracking: Tracking, job_id: str, tasks: tuple[str, ...]) -> bool:
    """Whether something of the folder may still be uploaded."""
    waiting = set(tracking.kept.pending())
    return any(key_of(job_id, task) in waiting for task in tasks)


def _cleared(folder: Path, kept: list[Path], dry_run: bool) -> Iterator[Finding]:
    if not kept:
        return
    size_bytes = sum(path.lstat().st_size for each in kept for path in each.rglob("*") if path.is_file())
    what = f"its job is done, and {size_bytes:,} bytes of checkpoints are still there"
    if not dry_run:
        for each in kept:
            shutil.rmtree(each, ignore_errors=True)
        if left := [each.name for each in kept if each.exists()]:
            mend = f"delete {', '.join(left)}: the system refuses it here"
            yield Finding(NAME, str(folder), what, mend=mend)
            return
    yield Finding(NAME, str(folder), what, "they were deleted; the adapters are in the store")

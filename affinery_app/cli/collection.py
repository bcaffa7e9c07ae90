"""affinery gc. (Not gc.py: that is the name of a module of Python.)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.figures import size

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from orchestration.reconcile.attempts import Remains
    from registry.collection import Collection


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take nothing; say what keeps each blob, and what would go.")
    ] = False,
    grace_minutes: Annotated[
        int, typer.Option(min=0, help="Keep blobs that arrived within so many minutes, needed or not.")
    ] = 60,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Also what was made of datasets once and would be made again."),
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take away the bytes that nothing needs: blobs of no row, checkpoints of jobs that are over."""
    from affinery_app.wiring import open_workspace
    from orchestration.reconcile.attempts import remains
    from registry import collection

    space = open_workspace(workspace)
    done = collection.collect(space.sessions, space.store, dry_run=dry_run, grace_seconds=60 * grace_minutes)
    over = remains(space.services())
    cached = _cached(space) if cache else []
    cached_bytes = sum(path.stat().st_size for path in cached)
    stuck = [] if dry_run else [path for each in over for path in each.clear()]
    stuck_bytes = sum(path.lstat().st_size for each in stuck for path in (each, *each.rglob("*")))
    for path in [] if dry_run else cached:
        path.unlink(missing_ok=True)
    freed = done.freed_bytes + sum(each.size_bytes for each in over) + cached_bytes - stuck_bytes
    if as_json:
        jobs = [{"job": e.folder.name, "why": e.why, "size_bytes": e.size_bytes} for e in over]
        told = {"runs": jobs, "cache": {"files": len(cached), "size_bytes": cached_bytes}}
        emit(done.to_json() | told | {"freed_bytes": freed})
        return
    if dry_run:
        _show(done, over)
    fields(
        [
            ("kept", len(done.kept)),
            ("would go" if dry_run else "gone", len(done.gone)),
            ("leftovers", len(done.leftovers)),
            ("jobs", f"{len(over)}, {size(sum(each.size_bytes for each in over))} of checkpoints"),
            *([("cache", f"{len(cached)} files, {size(cached_bytes)}")] if cache else []),
            ("would be freed" if dry_run else "freed", size(freed)),
        ]
    )
    for path in stuck:
        say(f"note: the system keeps {path}; delete it by hand")
    if dry_run and freed:
        following("affinery gc" + (" --cache" if cache else ""))


def _cached(space: Workspace) -> list[Path]:
    """The files of the cache; none while a job runs, which may be about to read them."""
    from orchestration import queue

    with space.sessions.read() as session:
        running = [job.number for job in queue.unfinished(session) if job.state == "running"]
    if running:
        say(f"note: the cache is kept: job {running[0]} runs and may read it")
        return []
    return sorted(path for path in space.services().cache.rglob("*") if path.is_file())


def _show(done: Collection, over: list[Remains]) -> None:
    table(
        ["blob", "size", "kept by"],
        [(each.digest[:12], size(each.size_bytes), each.kept_by) for each in done.kept],
        "No blob is kept.",
    )
    rows = [(each.digest[:12], size(each.size_bytes), "nothing needs it") for each in done.gone]
    rows += [(each.name[:12], size(each.size_bytes), "an upload that never ended") for each in done.leftovers]
    rows += [(f"job {each.folder.name[:8]}", size(each.size_bytes), each.why) for each in over]
    table(["would go", "size", "why"], rows, "Nothing would go.")

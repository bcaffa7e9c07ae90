"""affinery gc. (Not gc.py: that is the name of a module of Python.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, size, table

if TYPE_CHECKING:
    from registry.collection import Collection


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take nothing; say what keeps each blob, and what would go.")
    ] = False,
    grace_minutes: Annotated[
        int, typer.Option(min=0, help="Keep what arrived within so many minutes, needed or not.")
    ] = 60,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take away the bytes that no published row needs."""
    from affinery_app.wiring import open_workspace
    from registry import collection

    space = open_workspace(workspace)
    done = collection.collect(space.sessions, space.store, dry_run=dry_run, grace_seconds=60 * grace_minutes)
    if as_json:
        emit(done.to_json())
        return
    if dry_run:
        _show(done)
    went = "would go" if dry_run else "gone"
    fields(
        [
            ("kept", len(done.kept)),
            (went, len(done.gone)),
            ("leftovers", len(done.leftovers)),
            ("would be freed" if dry_run else "freed", size(done.freed_bytes)),
        ]
    )
    if dry_run and (done.gone or done.leftovers):
        following("affinery gc")


def _show(done: Collection) -> None:
    table(
        ["blob", "size", "kept by"],
        [(each.digest[:12], size(each.size_bytes), each.kept_by) for each in done.kept],
        "No blob is kept.",
    )
    rows = [(each.digest[:12], size(each.size_bytes), "nothing needs it") for each in done.gone]
    rows += [(each.name[:12], size(each.size_bytes), "an upload that never ended") for each in done.leftovers]
    table(["would go", "size", "why"], rows, "Nothing would go.")

"""affinery registry export | import."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, table
from affinery_app.cli.progress import bar
from affinery_app.figures import size

app = typer.Typer(help="Move a part of the registry, with its bytes, to another.", no_args_is_help=True)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="The archive to write; it must not be there yet.")],
    refs: Annotated[
        list[str] | None,
        typer.Argument(help="What to take, each with all that it needs.", show_default="everything"),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an archive that verifies itself."""
    from affinery.errors import ConfigInvalid
    from affinery_app.wiring import open_workspace
    from registry import transfer

    if file.exists():
        raise ConfigInvalid(str(file), "there is a file of that name; choose another, or move it away.")
    space = open_workspace(workspace)
    with bar("blobs written") as advance:
        moved = transfer.export(space.sessions, space.store, file, refs or (), advance)
    if as_json:
        emit({"archive": str(file)} | moved.to_json())
        return
    fields(
        [
            ("archive", file),
            ("digest", moved.digest),
            ("things", moved.things),
            ("blobs", f"{moved.blobs}, {size(moved.size_bytes)}"),
        ]
    )
    following(f"affinery registry import {quote(str(file))} --workspace OTHER")


@app.command("import")
def bring_in(
    file: Annotated[Path, typer.Argument(help="The archive.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify the archive and say what would be new.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring an archive in, whole or not at all. What is there already stays as it is."""
    from affinery.errors import ConfigInvalid
    from affinery_app.wiring import open_workspace
    from registry import transfer

    if not file.is_file():
        raise ConfigInvalid(str(file), "there is no such archive.")
    space = open_workspace(workspace)
    with bar("blobs verified") as advance:
        moved = transfer.bring_in(space.sessions, space.store, file, dry_run=dry_run, on_blob=advance)
    if as_json:
        emit({"archive": str(file), "dry_run": dry_run} | moved.to_json())
        return
    table(["would be new" if dry_run else "new"], [[ref] for ref in moved.new], "Nothing in it is new here.")
    for what, listed in (("hung on them", moved.hung), ("kept as it is here", moved.kept)):
        if listed:
            table([what], [[each] for each in listed], "")
    fields([("digest", moved.digest), ("things", moved.things), ("new", len(moved.new))])
    if moved.new and not dry_run:
        following("affinery verify")

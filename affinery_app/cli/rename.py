"""affinery rename."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, say
from affinery_app.cli.place import UrlOption, place


def rename(
    ref: Annotated[
        str,
        typer.Argument(
            help="A backbone, dataset, task or composition, without a version: backbone:dit.",
            autocompletion=completion.things,
        ),
    ],
    name: Annotated[str, typer.Argument(help="What it is to be called from now on.")],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a name, of all versions together. Digests and lineage stay."""
    with place(url, workspace) as where:
        record = where.rename(ref, name)
    if as_json:
        emit(record.to_json())
        return
    fields([(record.kind, record.name), ("was", record.was), ("first", record.origin)])
    if record.at is None:
        say("It has that name already.")

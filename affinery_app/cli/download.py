"""affinery download."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following
from affinery_app.cli.place import UrlOption, address
from affinery_app.figures import size


def download(
    ref: Annotated[
        str,
        typer.Argument(
            help="The export: its composition's name, or name@version.",
            autocompletion=completion.compositions,
        ),
    ],
    to: Annotated[Path, typer.Argument(help="A folder or file that is not there yet.")],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch what was exported from a service, or copy it out of a workspace. Broken off, it goes on."""
    from affinery_app.client import Client

    service = address(url, workspace)
    if service is None:
        from affinery_app.wiring import open_workspace

        where: str | Path = open_workspace(workspace).folder
    else:
        where = service
    with Client(where, os.environ.get("AFFINERY_TOKEN") if service else None) as client:
        record = client.exports.get(ref)
        target = client.exports.download(record["ref"], to)
    if as_json:
        emit({"export": record["ref"], "format": record["format"], "path": str(target)})
        return
    fields([("export", record["ref"]), (record["format"], target), ("size", size(record["size_bytes"]))])
    if record["format"] == "bundle":
        following(f"affinery sample {quote(str(target))}")

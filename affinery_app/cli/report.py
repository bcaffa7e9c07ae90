"""affinery report."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following
from affinery_app.cli.place import UrlOption, place
from affinery_app.figures import size


def report(
    task: Annotated[str, typer.Argument(help="The task.", autocompletion=completion.tasks)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The HTML file; folders on the way to it are made.",
            show_default="below reports/, in the workspace, or here of a service's",
        ),
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what is known of a task as one HTML file: figures, curves, samples, proofs."""
    from affinery.errors import PlaceInvalid

    if out is not None and out.is_dir():
        raise PlaceInvalid("--out", str(out), "is a folder; name the HTML file to write", "")
    with place(url, workspace) as where:
        record, told = where.report(task, out)
    if as_json:
        emit(told)
        return
    fields([("task", record.name), ("report", f"{told['report']} ({size(told['size_bytes'])})")])
    if url:
        following(
            f"affinery job add evaluate {quote(record.name)}",
            f"affinery job add retention {quote(record.backbone)}",
        )
    else:
        following(f"affinery evaluate {quote(record.name)}", f"affinery retention {quote(record.backbone)}")

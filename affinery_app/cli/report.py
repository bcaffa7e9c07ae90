"""affinery report."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following
from affinery_app.figures import size


def report(
    task: Annotated[str, typer.Argument(help="The task.", autocompletion=completion.tasks)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The HTML file; folders on the way to it are made.",
            show_default="in the workspace, below reports/",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what is known of a task as one HTML file: figures, curves, samples, proofs."""
    from affinery import tensor_files
    from affinery.errors import PlaceInvalid
    from affinery_app.report_page import page
    from affinery_app.task_report import gather
    from affinery_app.wiring import open_workspace

    if out is not None and out.is_dir():
        raise PlaceInvalid("--out", str(out), "is a folder; name the HTML file to write", "")
    space = open_workspace(workspace)
    found = gather(space, task)
    target = (out or space.folder / "reports" / f"{found.task.name}.html").absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    tensor_files.write_whole(target, page(found).encode())
    told = {
        "task": found.task.name,
        "report": str(target),
        "versions": [version.adapter.ref for version in found.versions],
        "protocols": list(found.evaluations),
        "size_bytes": target.stat().st_size,
    }
    if as_json:
        emit(told)
        return
    fields([("task", found.task.name), ("report", f"{target} ({size(target.stat().st_size)})")])
    following(
        f"affinery evaluate {quote(found.task.name)}", f"affinery retention {quote(found.task.backbone)}"
    )

"""affinery compose, affinery export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, size


def compose(
    name: Annotated[str, typer.Argument(help="The composition's name.")],
    task: Annotated[
        list[str], typer.Option("--task", "-t", help="A task, or task@version; repeat for more.")
    ],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put adapters of one backbone together: one model whose batches may mix their tasks."""
    from affinery_app.wiring import open_workspace
    from orchestration.additions import compose_tasks
    from orchestration.tracking import compositions

    space = open_workspace(workspace)
    record = compose_tasks(space.sessions, name, task)
    compositions.tell(space.tracking, space.sessions, record)
    if as_json:
        emit(record.to_json())
        return
    fields([("composition", record.ref), ("backbone", record.backbone), ("members", record.members)])
    following(f"affinery export {record.ref}", f"affinery sample {record.ref}")


def export(
    ref: Annotated[str, typer.Argument(help="The composition: name, or name@version.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The bundle's folder.", show_default="<workspace>/exports/<name>-<version>"),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a composition as a bundle: a folder that verifies itself. Load it with affinery.load(FOLDER)."""
    from affinery_app.wiring import open_workspace
    from orchestration.additions import export_bundle

    space = open_workspace(workspace)
    record = export_bundle(space.sessions, space.store, ref, out, space.exports)
    if as_json:
        emit(record.to_json())
        return
    fields(
        [
            ("bundle", record.path),
            ("digest", record.digest),
            ("size", size(record.size_bytes)),
            ("composition", record.composition),
        ]
    )
    following(f"affinery sample '{record.path}'")

"""affinery dataset adopt."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, printable, say


def adopt(
    name: Annotated[str, typer.Argument(help="Its name in the registry.")],
    md5: Annotated[str, typer.Argument(help="What a .dvc file pins, as 3f2a….dir; or of one file.")],
    remote: Annotated[
        str | None,
        typer.Option(
            help="The remote that has it, as affinery dataset remote list names it.", show_default="default"
        ),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Under what terms the images are.")] = None,
    origin: Annotated[str | None, typer.Option("--source", help="Where they come from, in words.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split to learn from, or all.", show_default="train")
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad/--strict", help="Leave out images that cannot be learnt from, instead of refusing."
        ),
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record as a dataset what a DVC remote has: a pack of another workspace, or folders of images."""
    from affinery_app.wiring import open_workspace
    from orchestration.additions import adopt_dataset

    space = open_workspace(workspace)
    record, notes = adopt_dataset(
        space.sessions,
        space.data,
        md5,
        remote,
        name=name,
        licence=licence,
        source=origin,
        split=split,
        skip_bad=skip_bad,
    )
    for note in notes:
        say(f"note: {printable(note)}")
    if as_json:
        emit(record.to_json() | {"notes": notes})
        return
    fields(
        [
            ("dataset", record.ref),
            ("digest", record.digest),
            ("dvc", record.dvc_md5),
            ("images", f"{record.image_count:,}"),
            ("classes", len(record.classes)),
        ]
    )
    following(f"affinery task add {record.name} --dataset {record.name} --backbone NAME")

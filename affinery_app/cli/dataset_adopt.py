"""affinery dataset adopt."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.dataset_added import (
    LicenceOption,
    OriginOption,
    SkipBadOption,
    SplitOption,
    tell_added,
)
from affinery_app.cli.output import JsonOption, WorkspaceOption


def adopt(
    name: Annotated[str, typer.Argument(help="Its name in the registry.")],
    md5: Annotated[str, typer.Argument(help="What a .dvc file pins, as 3f2a….dir; or of one file.")],
    remote: Annotated[
        str | None,
        typer.Option(
            help="The remote that has it, as affinery dataset remote list names it.", show_default="default"
        ),
    ] = None,
    licence: LicenceOption = None,
    origin: OriginOption = None,
    split: SplitOption = None,
    skip_bad: SkipBadOption = False,
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
    tell_added(
        record, notes, as_json, f"affinery dataset show {record.name} --contact-sheet {record.name}.png"
    )

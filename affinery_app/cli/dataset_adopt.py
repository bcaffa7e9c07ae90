"""affinery dataset adopt."""

from __future__ import annotations

from shlex import quote
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
from affinery_app.cli.place import UrlOption, place


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
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record as a dataset what a DVC remote has: a pack of another workspace, or folders of images."""
    given = {"licence": licence, "source": origin, "split": split, "skip_bad": skip_bad}
    with place(url, workspace) as where:
        record, notes = where.adopt_dataset(name, md5, remote, given)
    sheet = "" if url else f" --contact-sheet {quote(f'{record.name}.png')}"
    tell_added(record, notes, as_json, f"affinery dataset show {quote(record.name)}{sheet}")

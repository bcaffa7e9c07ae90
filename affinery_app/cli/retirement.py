"""affinery adapter retire | restore."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following
from affinery_app.cli.place import UrlOption, place

RefArgument = Annotated[
    str, typer.Argument(help="task, or task@version.", autocompletion=completion.adapters)
]


def retire(
    ref: RefArgument,
    reason: Annotated[str, typer.Option(help="Why this version is not to be used any more.")],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let no new composition take this version. It stays in the record, with its bytes and its lineage."""
    with place(url, workspace) as where:
        version, since = where.retire(ref, reason)
    if as_json:
        emit({"ref": version, "retired": since.since.isoformat(), "reason": since.reason})
        return
    day = f"{since.since:%Y-%m-%d %H:%M} UTC"
    fields([("retired", version), ("since", day), ("reason", since.reason)])
    following(f"affinery adapter restore {quote(version)}")


def restore(
    ref: RefArgument, url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Let a retired version be used again."""
    with place(url, workspace) as where:
        version = where.restore(ref)
    if as_json:
        emit({"ref": version, "retired": None})
    else:
        fields([("restored", version)])

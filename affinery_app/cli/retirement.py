"""affinery adapter retire | restore."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following

RefArgument = Annotated[str, typer.Argument(help="task, or task@version.")]


def retire(
    ref: RefArgument,
    reason: Annotated[str, typer.Option(help="Why this version is not to be used any more.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let no new composition take this version. It stays in the record, with its bytes and its lineage."""
    from affinery_app.wiring import open_workspace
    from registry import retirement

    with open_workspace(workspace).sessions.begin() as session:
        record = retirement.retire(session, ref, reason)
        since = retirement.of(session, [record.node_id])[record.node_id]
    if as_json:
        emit({"ref": record.ref, "retired": since.since.isoformat(), "reason": since.reason})
        return
    day = f"{since.since:%Y-%m-%d %H:%M} UTC"
    fields([("retired", record.ref), ("since", day), ("reason", since.reason)])
    following(f"affinery adapter restore {record.ref}")


def restore(ref: RefArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Let a retired version be used again."""
    from affinery_app.wiring import open_workspace
    from registry import retirement

    with open_workspace(workspace).sessions.begin() as session:
        record = retirement.restore(session, ref)
    if as_json:
        emit({"ref": record.ref, "retired": None})
    else:
        fields([("restored", record.ref)])

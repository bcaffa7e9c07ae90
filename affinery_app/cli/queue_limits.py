"""affinery queue limit set | list | rm."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, table

app = typer.Typer(help="How the queue shares out what there is.", no_args_is_help=True)
limits = typer.Typer(help="How much may run at once, on all workers together.", no_args_is_help=True)
app.add_typer(limits, name="limit")

ScopeArgument = Annotated[str, typer.Argument(help="backbone, submitter or resource.")]
KeyArgument = Annotated[
    str,
    typer.Argument(help="A backbone, a user's name, or cpus, gpus, memory_bytes; * is each that has no own."),
]


@limits.command("set")
def put(
    scope: ScopeArgument,
    key: KeyArgument,
    most: Annotated[float, typer.Argument(help="Jobs at once; of a resource, how much of it.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a limit. What runs already runs on."""
    from affinery_app.wiring import open_workspace
    from orchestration.queue import limits as queue_limits

    with open_workspace(workspace).sessions.begin() as session:
        limit = queue_limits.put(session, scope, key, most)
    if as_json:
        emit(limit.to_json())
    else:
        fields([("limit", f"{limit.scope} {limit.key}"), ("at most", f"{limit.most:g}")])


@limits.command("list")
def list_all(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All limits."""
    from affinery_app.wiring import open_workspace
    from orchestration.queue import limits as queue_limits

    with open_workspace(workspace).sessions.read() as session:
        found = queue_limits.list_all(session)
    if as_json:
        emit([limit.to_json() for limit in found])
        return
    rows = [(limit.scope, limit.key, f"{limit.most:g}") for limit in found]
    table(["scope", "of", "at most"], rows, "No limit. Set one: affinery queue limit set backbone '*' 1")


@limits.command("rm")
def remove(
    scope: ScopeArgument, key: KeyArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Take a limit away."""
    from affinery_app.wiring import open_workspace
    from orchestration.queue import limits as queue_limits

    with open_workspace(workspace).sessions.begin() as session:
        queue_limits.remove(session, scope, key)
    if as_json:
        emit({"removed": f"{scope} {key}"})
    else:
        fields([("removed", f"{scope} {key}")])

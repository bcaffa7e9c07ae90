"""affinery queue limit set | list | rm."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, table
from affinery_app.cli.place import UrlOption, place

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
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a limit. What runs already runs on."""
    with place(url, workspace) as where:
        limit = where.set_limit(scope, key, most)
    if as_json:
        emit(limit.to_json())
    else:
        fields([("limit", f"{limit.scope} {limit.key}"), ("at most", f"{limit.most:g}")])


@limits.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All limits."""
    with place(url, workspace) as where:
        found = where.limits()
    if as_json:
        emit([limit.to_json() for limit in found])
        return
    rows = [(limit.scope, limit.key, f"{limit.most:g}") for limit in found]
    table(["scope", "of", "at most"], rows, "No limit. Set one: affinery queue limit set backbone '*' 1")


@limits.command("rm")
def remove(
    scope: ScopeArgument,
    key: KeyArgument,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a limit away."""
    with place(url, workspace) as where:
        where.remove_limit(scope, key)
    if as_json:
        emit({"removed": f"{scope} {key}"})
    else:
        fields([("removed", f"{scope} {key}")])

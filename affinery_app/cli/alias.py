"""affinery alias set | list | history | remove."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, table
from affinery_app.cli.place import UrlOption, place

if TYPE_CHECKING:
    from registry.records import AliasRecord

app = typer.Typer(
    help="Names that move: which adapter version of a task is champion, candidate, …", no_args_is_help=True
)
ExpectOption = Annotated[
    str | None,
    typer.Option(help='What it must mean now, a version or "none"; otherwise nothing is changed.'),
]


@app.command("set")
def set_alias(
    name: Annotated[str, typer.Argument(help="The alias: champion, candidate, or a name of your own.")],
    ref: Annotated[
        str,
        typer.Argument(
            help="The adapter: task, task@version, task@alias or a digest.",
            autocompletion=completion.adapters,
        ),
    ],
    expect: ExpectOption = None,
    require: Annotated[
        list[str] | None,
        typer.Option(help="What its metrics must hold, such as 'recognition>=0.8'; repeat for more."),
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at an adapter version; task@alias then means it everywhere."""
    with place(url, workspace) as where:
        record = where.point(name, ref, expect, require or ())
    if as_json:
        emit(record.to_json())
        return
    fields([("alias", record.ref), ("means", record.adapter), ("moves", record.number)])
    following(f"affinery adapter show {quote(record.ref)}", f"affinery alias history {quote(record.ref)}")


@app.command("list")
def list_all(
    task: Annotated[
        str | None, typer.Option(help="Only of this task.", autocompletion=completion.tasks)
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """All aliases and what they mean."""
    with place(url, workspace) as where:
        found = where.aliases(task)
    if as_json:
        emit([record.to_json() for record in found])
        return
    table(
        ["alias", "means", "since", "gate"],
        [(r.ref, r.adapter, f"{r.at:%Y-%m-%d %H:%M}", _gate(r)) for r in found],
        "No alias yet. Point one at an adapter: affinery alias set champion TASK",
    )


@app.command("history")
def history(
    ref: Annotated[str, typer.Argument(help="The alias: task@alias.", autocompletion=completion.adapters)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every move of an alias, the latest first."""
    with place(url, workspace) as where:
        records = where.alias_moves(ref)
    if as_json:
        emit([record.to_json() for record in records])
        return
    table(
        ["move", "meant", "since", "gate"],
        [(r.number, r.adapter or "taken away", f"{r.at:%Y-%m-%d %H:%M}", _gate(r)) for r in records],
        "",
    )


@app.command("remove")
def remove(
    ref: Annotated[str, typer.Argument(help="The alias: task@alias.", autocompletion=completion.adapters)],
    expect: ExpectOption = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take an alias away. Its history stays."""
    with place(url, workspace) as where:
        record = where.remove_alias(ref, expect)
    if as_json:
        emit(record.to_json())
    else:
        fields([("alias", record.ref), ("means", "nothing"), ("moves", record.number)])


def _gate(record: AliasRecord) -> str | None:
    passed = [
        f"{each['metric']}{each['comparison']}{each['bound']:g} ({each['found']:.4g})" for each in record.gate
    ]
    return ", ".join(passed) or None

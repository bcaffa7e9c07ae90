"""affinery token create | list | revoke."""

from __future__ import annotations

from enum import StrEnum
from shlex import quote
from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.cli.place import UrlOption, place

app = typer.Typer(help="Who may call the service, and what they may do.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="What the token is called.")]


class Scope(StrEnum):
    """What a token may do, and all before it."""

    read = "read"
    schedule = "schedule"
    promote = "promote"
    admin = "admin"


@app.command("create")
def create(
    name: NameArgument,
    scope: Annotated[
        Scope,
        typer.Option(help="read; schedule: jobs too; promote: aliases, labels, exports too; admin: all."),
    ] = Scope.read,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Change only what belongs to this task; repeat for more.", show_default="all"),
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires.", show_default="never")] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token. It is printed once; the registry keeps its digest only."""
    with place(url, workspace) as where:
        record, text = where.create_token(name, scope.value, task or None, days)
    if as_json:
        emit(record.to_json() | {"token": text})
        return
    print(text)
    say(f"The token {record.name!r} ({record.scope}) is not shown again: keep it now.")
    following(*([] if url else ["affinery serve"]), f"affinery token revoke {quote(record.name)}")


@app.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All tokens, and when they were last used."""
    with place(url, workspace) as where:
        records = where.tokens()
    if as_json:
        emit([record.to_json() for record in records])
        return
    table(
        ["token", "scope", "tasks", "state", "expires (UTC)", "used (UTC)"],
        [
            (
                record.name,
                record.scope,
                record.tasks or "all",
                record.state,
                f"{record.expires_at:%Y-%m-%d %H:%M}" if record.expires_at else "never",
                f"{record.used_at:%Y-%m-%d %H:%M}" if record.used_at else None,
            )
            for record in records
        ],
        "No token: the service answers to this machine only. Make one: affinery token create NAME",
    )


@app.command("revoke")
def revoke(
    name: NameArgument, url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """End a token at once, and the browsers' sessions that were opened with it."""
    with place(url, workspace) as where:
        record = where.revoke_token(name)
    if as_json:
        emit(record.to_json())
        return
    fields([("revoked", record.name)])

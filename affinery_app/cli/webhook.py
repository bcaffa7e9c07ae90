"""affinery webhook add | list | rm | test | deliveries."""

from __future__ import annotations

from enum import StrEnum
from shlex import quote
from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.cli.place import UrlOption, place

app = typer.Typer(help="Addresses that are told of what happens.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="What the webhook is called.")]


class State(StrEnum):
    """Where a delivery stands."""

    waiting = "waiting"
    delivered = "delivered"
    given_up = "given-up"


@app.command("add")
def add(
    name: NameArgument,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where it is told: https://host/path.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Events that it is told: job.done, or 'job.*'; repeat for more.", show_default="all"
        ),
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell this address of what happens from now on. The secret that signs is printed once."""
    with place(url, workspace) as where:
        record, secret = where.add_webhook(name, address, kind or ())
    if as_json:
        emit(record.to_json() | {"secret": secret})
        return
    print(secret)
    say(f"The secret of {record.name!r} is not shown again: give it to the receiver, which checks with it.")
    following(
        f"affinery webhook test {quote(record.name)}",
        *([] if url else ["affinery serve"]),
        f"affinery webhook rm {quote(record.name)}",
    )


@app.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All webhooks, and how much each is still to be told."""
    with place(url, workspace) as where:
        records = where.webhooks()
    if as_json:
        emit([record.to_json() for record in records])
        return
    table(
        ["webhook", "address", "events", "waiting", "failures"],
        [
            (record.name, record.url, record.kinds or "all", record.waiting, record.failures)
            for record in records
        ],
        "No webhook. Make one: affinery webhook add NAME https://…",
    )


@app.command("rm")
def remove(
    name: NameArgument, url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Forget a webhook, and what it was still to be told."""
    with place(url, workspace) as where:
        record = where.remove_webhook(name)
    if as_json:
        emit(record.to_json())
        return
    fields([("removed", record.name), ("not told", record.waiting)])


@app.command("test")
def try_out(
    name: NameArgument, url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Have a webhook told an event that says only this: affinery serve sends it."""
    with place(url, workspace) as where:
        record = where.test_webhook(name)
    if as_json:
        emit(record.to_json())
        return
    fields([("event", record.event), ("kind", record.kind), ("state", record.state)])
    following(f"affinery webhook deliveries {quote(name)}")


@app.command("deliveries")
def deliveries(
    name: NameArgument,
    state: Annotated[State | None, typer.Option(help="Only these.", show_default="all")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest.")] = 20,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a webhook was and is to be told, the newest first, and what became of it. Kept for a week."""
    with place(url, workspace) as where:
        found = where.deliveries(name, None if state is None else state.value, limit)
    if as_json:
        emit([record.to_json() for record in found])
        return
    table(
        ["event", "kind", "state", "tries", "answer", "why"],
        [(each.event, each.kind, each.state, each.tries, each.status, each.reason) for each in found],
        f"Nothing happened since that it is told of. Try it: affinery webhook test {quote(name)}",
    )

"""affinery webhook add | list | rm | test | deliveries."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from affinery_app.cli.job_options import submitter
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table

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
    url: Annotated[str, typer.Argument(help="Where it is told: https://host/path.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Events that it is told: job.done, or 'job.*'; repeat for more.", show_default="all"
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell this address of what happens from now on. The secret that signs is printed once."""
    from affinery_app.wiring import open_workspace
    from orchestration.webhooks_posting import checked
    from registry import webhooks

    space = open_workspace(workspace)
    url = checked(url, space.webhook_hosts)
    with space.sessions.begin() as session:
        record, secret = webhooks.create(session, name, url, kinds=kind or (), by=submitter())
    if as_json:
        emit(record.to_json() | {"secret": secret})
        return
    print(secret)
    say(f"The secret of {record.name!r} is not shown again: give it to the receiver, which checks with it.")
    following(f"affinery webhook test {record.name}", "affinery serve", f"affinery webhook rm {record.name}")


@app.command("list")
def list_all(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All webhooks, and how much each is still to be told."""
    from affinery_app.wiring import open_workspace
    from registry import webhooks

    with open_workspace(workspace).sessions.read() as session:
        records = webhooks.list_all(session)
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
def remove(name: NameArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Forget a webhook, and what it was still to be told."""
    from affinery_app.wiring import open_workspace
    from registry import webhooks

    with open_workspace(workspace).sessions.begin() as session:
        record = webhooks.remove(session, name, by=submitter())
    if as_json:
        emit(record.to_json())
        return
    fields([("removed", record.name), ("not told", record.waiting)])


@app.command("test")
def try_out(name: NameArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Have a webhook told an event that says only this: affinery serve sends it."""
    from affinery_app.wiring import open_workspace
    from registry import webhooks

    with open_workspace(workspace).sessions.begin() as session:
        record = webhooks.test(session, name, by=submitter())
    if as_json:
        emit(record.to_json())
        return
    fields([("event", record.event), ("kind", record.kind), ("state", record.state)])
    following(f"affinery webhook deliveries {name}")


@app.command("deliveries")
def deliveries(
    name: NameArgument,
    state: Annotated[State | None, typer.Option(help="Only these.", show_default="all")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest.")] = 20,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a webhook was and is to be told, the newest first, and what became of it. Kept for a week."""
    from affinery_app.wiring import open_workspace
    from registry import webhooks

    with open_workspace(workspace).sessions.read() as session:
        found = webhooks.deliveries(session, name, limit=limit, state=None if state is None else state.value)
    if as_json:
        emit([record.to_json() for record in found])
        return
    table(
        ["event", "kind", "state", "tries", "answer", "why"],
        [(each.event, each.kind, each.state, each.tries, each.status, each.reason) for each in found],
        f"Nothing happened since that it is told of. Try it: affinery webhook test {name}",
    )

"""affinery events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, say, table
from affinery_app.cli.place import UrlOption, place

LONG, SHORT = 32, 12


def events(
    after: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Only what happened after this one.")] = 0,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Only events of this kind, as adapter.published.", autocompletion=completion.event_kinds
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What happened, oldest first: every change has an event, written in the same transaction."""
    with place(url, workspace) as where:
        found = where.events(after, kind, limit)
    if as_json:
        emit([event.to_json() for event in found])
        return
    rows = [
        (event.id, f"{event.at:%Y-%m-%d %H:%M:%S}", event.kind, event.subject, _facts(event.payload))
        for event in found
    ]
    table(["id", "when", "what", "node", "facts"], rows, "Nothing happened.")
    if len(found) == limit:
        say(f"There may be more: affinery events --after {found[-1].id}")


def _facts(payload: Mapping[str, Any]) -> list[str]:
    """What is told of it, digests as they begin; all of it: --json."""
    told = {name: value for name, value in payload.items() if name != "row" and value is not None}
    return [f"{name} {_short(value)}" for name, value in told.items()]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONG else f"{text[:SHORT]}…"

"""affinery doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, following, printable, say

if TYPE_CHECKING:
    from affinery_app.doctor import Check

WIDTH = 12
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also what takes seconds: load MLflow, DVC and torch, and start Ray."),
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at all that a workspace stands on, and say how to mend what is not well.

    Exits 1 where something fails.
    """
    from affinery_app.doctor import FAIL, OK, examine

    found = []
    for check in examine(workspace, deep=deep):
        found.append(check)
        if not as_json:
            _show(check)
    count = {state: sum(check.state == state for check in found) for state in ("ok", "warn", "fail")}
    if as_json:
        emit({"healthy": not count["fail"], "checks": [check.to_json() for check in found]})
    else:
        told = ", ".join(f"{number} {state}" for state, number in count.items() if number)
        say(f"\n{told}" + (". All is well." if count["ok"] == len(found) else "."))
        if all(check.state == OK for check in found):
            following("affinery demo", "affinery task list")
    if any(check.state == FAIL for check in found):
        raise typer.Exit(1)


def _show(check: Check) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sheet = Table.grid(padding=(0, 1))
    sheet.add_column(width=4)
    sheet.add_column(width=WIDTH)
    sheet.add_column(overflow="fold")
    sheet.add_row(Text(check.state, style=STYLES[check.state]), check.name, Text(printable(check.what)))
    if check.mend:
        sheet.add_row("", "", Text(f"→ {check.mend}", style="dim"))
    Console(highlight=False).print(sheet)

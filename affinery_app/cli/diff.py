"""affinery diff."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, printable, say, table
from affinery_app.cli.place import UrlOption, place

WHICH = ("kind", "left", "right")
"""What is told of a difference beside its sections and tensors."""


def diff(
    left: Annotated[
        str, typer.Argument(help="An adapter version or a composition.", autocompletion=completion.adapters)
    ],
    right: Annotated[
        str, typer.Argument(help="Another of the same kind.", autocompletion=completion.adapters)
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors/--no-tensors", help="Read both adapters and compare their tensors.")
    ] = True,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What differs between two adapters or compositions: config, data, metrics, provenance, tensors."""
    with place(url, workspace) as where:
        found = where.diff(left, right, tensors)
    if as_json:
        emit(found)
        return
    apart = found.pop("tensors")
    sections = {name: changes for name, changes in found.items() if name not in WHICH}
    columns = ["", found["left"], found["right"]]
    for section, changes in sections.items():
        if changes:
            print(section)
            table(columns, [_row(change) for change in changes], "")
            print()
    if not any(sections.values()):
        say(f"{found['left']} and {found['right']} do not differ in what is recorded.")
    if apart is not None:
        _print_tensors(apart, columns)


def _row(change: dict[str, Any]) -> tuple[str, str, str]:
    left, right = (printable(change[side]) if side in change else "absent" for side in ("left", "right"))
    return change["path"], left, right


def _print_tensors(apart: list[dict[str, Any]], columns: list[str]) -> None:
    differing = [each for each in apart if each["apart"] != 0.0]
    print(f"tensors: {len(apart) - len(differing)} equal, {len(differing)} differ")
    if differing:
        rows = [(each["name"], each["left"], each["right"], each["apart"]) for each in differing]
        table([*columns, "apart"], rows, "")

"""affinery diff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, printable, say, table

if TYPE_CHECKING:
    from orchestration.tensor_differences import TensorDifference
    from registry.diff import Change


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
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What differs between two adapters or compositions: config, data, metrics, provenance, tensors."""
    from affinery_app.wiring import open_workspace
    from orchestration.tensor_differences import tensor_differences
    from registry.diff import diff as compare
    from registry.records import AdapterRecord

    space = open_workspace(workspace)
    with space.sessions.read() as session:
        found = compare(session, left, right)
    apart: list[TensorDifference] | None = None
    if tensors and isinstance(found.left, AdapterRecord) and isinstance(found.right, AdapterRecord):
        apart = tensor_differences(
            space.store.path(found.left.blob_digest), space.store.path(found.right.blob_digest)
        )
    if as_json:
        listed = None if apart is None else [each.to_json() for each in apart]
        emit(found.to_json() | {"tensors": listed})
        return
    columns = ["", found.left.ref, found.right.ref]
    for section, changes in found.sections.items():
        if changes:
            print(section)
            table(columns, [_row(change) for change in changes], "")
    if not any(found.sections.values()):
        say(f"{found.left.ref} and {found.right.ref} do not differ in what is recorded.")
    if apart is not None:
        _print_tensors(apart, columns)


def _row(change: Change) -> tuple[str, str, str]:
    left, right = ("absent" if change.absent == side else value for side, value in _sides(change))
    return change.path, printable(left), printable(right)


def _sides(change: Change) -> list[tuple[str, Any]]:
    return [("left", change.left), ("right", change.right)]


def _print_tensors(apart: list[TensorDifference], columns: list[str]) -> None:
    differing = [each for each in apart if not each.equal]
    print(f"tensors: {len(apart) - len(differing)} equal, {len(differing)} differ")
    if differing:
        table(
            [*columns, "apart"],
            [(each.name, each.left, each.right, each.apart) for each in differing],
            "",
        )

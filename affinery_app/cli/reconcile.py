"""affinery reconcile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from affinery.counting import counted
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, following, printable, say


def reconcile(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="datasets, blobs, mlflow, attempts or ray; repeat for more.", show_default="all"),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring DVC, the blob store, MLflow, jobs' folders and Ray back to what the registry says.

    Tells what differed. Exits 1 where something is still to be done.
    """
    from affinery.errors import ConfigInvalid
    from affinery_app.wiring import open_workspace
    from orchestration.reconcile import NEIGHBOURS
    from orchestration.reconcile import reconcile as bring_back

    unknown = [name for name in only or () if name not in NEIGHBOURS]
    if unknown:
        raise ConfigInvalid("--only", f"{unknown[0]!r} is none of {', '.join(NEIGHBOURS)}.")
    space = open_workspace(workspace)
    with _bars() as advance:
        found = bring_back(space.services(), dry_run=dry_run, only=only or (), on_progress=advance)
    if as_json:
        emit(found.to_json())
    else:
        for each in found.findings:
            print(f"{each.neighbour}: {printable(each.where)}: {printable(each.what)}")
            doing = "would be done" if dry_run else "done"
            print(f"    {f'{doing}: {each.done}' if each.done else f'to do: {printable(each.mend)}'}")
        settled = len(found.findings) - len(found.remaining)
        differences = counted(len(found.findings), "difference")
        say(
            f"{differences}, {settled} mended, {len(found.remaining)} still to do."
            if found.findings
            else "Everything is as the registry says."
        )
        if dry_run and found.findings:
            following("affinery reconcile")
    if found.remaining:
        raise typer.Exit(1)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    from affinery_app.cli.progress import bars

    with bars() as progress:
        entries: dict[str, Any] = {}

        def advance(neighbour: str, done: int, of: int) -> None:
            if neighbour not in entries:
                entries[neighbour] = progress.add_task(neighbour, total=of, note="")
            progress.update(entries[neighbour], completed=done, total=of)

        yield advance

"""affinery verify."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery.counting import counted
from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, printable, say
from affinery_app.cli.progress import bar
from affinery_app.figures import size


def verify(
    ref: Annotated[
        str | None,
        typer.Argument(
            help="Only this, and all that it was made from.",
            autocompletion=completion.things,
            show_default="everything",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every blob and ask every row: is the record still true? Exits 1 where it is not."""
    from affinery_app.wiring import open_workspace
    from registry import verification

    space = open_workspace(workspace)
    with bar("blobs read") as advance:
        report = verification.verify(space.unchecked_engine(), space.store, ref, advance)
    if as_json:
        emit(report.to_json())
    else:
        for finding in report.findings:
            print(f"{finding.check}: {printable(finding.where)}: {printable(finding.what)}")
            print(f"    {finding.mend}")
        fields((name, size(n) if name == "bytes" else n) for name, n in report.counts.items())
        found = f"{counted(len(report.findings), 'finding')}; nothing was changed."
        say("Everything is as it was recorded." if report.sound else found)
    if not report.sound:
        raise typer.Exit(1)

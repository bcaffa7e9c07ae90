"""affinery dataset add | list | show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, size, table

app = typer.Typer(help="Images to learn from, pinned by content under DVC.", no_args_is_help=True)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Its name in the registry.")],
    folder: Annotated[
        Path,
        typer.Argument(
            help="class_name/*.png, images alone for one without classes, or images with metadata.jsonl."
        ),
    ],
    licence: Annotated[str, typer.Option(help="Under what terms the images are.")] = "unknown",
    source: Annotated[str, typer.Option(help="Where they come from.")] = "",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a folder of images, put it under DVC, record its version. The same images change nothing."""
    from affinery_app.cli.progress import bar
    from affinery_app.wiring import open_workspace
    from orchestration.additions import add_dataset

    space = open_workspace(workspace)
    with bar(f"reading {name}") as advance:
        record, notes = add_dataset(
            space.sessions, space.data, folder, name=name, licence=licence, source=source, on_progress=advance
        )
    for note in notes:
        say(f"note: {note}")
    if as_json:
        emit(record.to_json() | {"notes": notes})
        return
    fields(
        [
            ("dataset", record.ref),
            ("digest", record.digest),
            ("dvc", record.dvc_md5),
            ("images", f"{record.image_count:,}"),
            ("classes", len(record.classes)),
        ]
    )
    following(f"affinery task add {record.name} --dataset {record.name} --backbone NAME")


@app.command("list")
def list_all(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All dataset versions."""
    from affinery_app.wiring import open_workspace
    from registry import datasets

    with open_workspace(workspace).sessions.read() as session:
        records = datasets.list_all(session)
    if as_json:
        emit([record.to_json() for record in records])
        return
    table(
        ["dataset", "digest", "images", "classes", "licence"],
        [(r.ref, r.digest[:12], f"{r.image_count:,}", len(r.classes), r.licence) for r in records],
        "No dataset yet. Add one: affinery dataset add NAME FOLDER",
    )


@app.command("show")
def show(ref: str, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """One dataset version: its pins and its classes."""
    from affinery_app.wiring import open_workspace
    from registry import datasets

    with open_workspace(workspace).sessions.read() as session:
        record = datasets.get(session, ref)
    if as_json:
        emit(record.to_json())
        return
    fields(
        [
            ("dataset", record.ref),
            ("digest", record.digest),
            ("dvc .dir", record.dvc_md5),
            ("path", record.dvc_path),
            ("size", size(record.size_bytes)),
            ("licence", record.licence),
            ("source", record.source or "–"),
            ("added", f"{record.created_at:%Y-%m-%d %H:%M} UTC"),
        ]
    )
    print()
    table(["class", "images"], zip(record.classes, record.class_counts, strict=True), "")

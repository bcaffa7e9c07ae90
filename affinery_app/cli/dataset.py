"""affinery dataset add | list | show | versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli import completion, dataset_adopt, dataset_copies, rebase
from affinery_app.cli.dataset_added import (
    LicenceOption,
    OriginOption,
    SkipBadOption,
    SplitOption,
    tell_added,
    tell_balance,
)
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, table
from affinery_app.cli.place import UrlOption, place
from affinery_app.cli.progress import stages
from affinery_app.figures import size

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from registry.records import DatasetRecord

app = typer.Typer(help="Images to learn from, pinned by content under DVC.", no_args_is_help=True)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Its name in the registry.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder (class_name/*.png, images alone, images with metadata.jsonl or .csv, or splits "
            "train/test of these), a zip or tar archive of one, Parquet files, or a pack of Affinery's."
        ),
    ],
    licence: LicenceOption = None,
    origin: OriginOption = None,
    split: SplitOption = None,
    skip_bad: SkipBadOption = False,
    image_column: Annotated[str | None, typer.Option(help="Parquet: the column of images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Parquet: the column of classes.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Parquet: the column of captions.")] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check images, put them under DVC, record their version. The same images change nothing."""
    given = {"licence": licence, "source": origin, "split": split, "skip_bad": skip_bad}
    columns = {"image_column": image_column, "label_column": label_column, "text_column": text_column}
    with place(url, workspace) as where, stages(name) as advance:
        record, notes = where.add_dataset(name, source, given | columns, advance)
    sheet = "" if url else f" --contact-sheet {quote(f'{record.name}.png')}"
    tell_added(record, notes, as_json, f"affinery dataset show {quote(record.name)}{sheet}")


@app.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All datasets, each in its newest version; their versions: affinery dataset versions NAME."""
    with place(url, workspace) as where:
        found = where.datasets()
    if as_json:
        emit([record.to_json() for record in found])
        return
    newest = {record.name: record for record in found}
    _list(list(newest.values()), "No dataset yet. Add one: affinery dataset add NAME FOLDER")


@app.command("versions")
def versions(
    name: Annotated[str, typer.Argument(help="The dataset.", autocompletion=completion.datasets)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every version of a dataset, oldest first. Each stays retrievable by its pin."""
    with place(url, workspace) as where:
        wanted = where.dataset(name).name
        records = [record for record in where.datasets() if record.name == wanted]
    if as_json:
        emit([record.to_json() for record in records])
        return
    _list(records, "")


def _list(records: Sequence[DatasetRecord], empty: str) -> None:
    table(
        ["dataset", "digest", "images", "classes", "size", "licence", "added"],
        [
            (
                r.ref,
                r.digest[:12],
                f"{r.image_count:,}",
                len(r.classes),
                size(r.size_bytes),
                r.licence,
                f"{r.created_at:%Y-%m-%d}",
            )
            for r in records
        ],
        empty,
    )


@app.command("show")
def show(
    ref: Annotated[str, typer.Argument(help="name, or name@version.", autocompletion=completion.datasets)],
    contact_sheet: Annotated[
        Path | None, typer.Option("--contact-sheet", help="Write a picture of images of every class here.")
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """One dataset version: its pins and its classes."""
    from affinery.errors import ConfigInvalid

    if url and contact_sheet is not None:
        raise ConfigInvalid("--contact-sheet", "a service tells no images; ask in a workspace.")
    with place(url, workspace) as where:
        record = where.dataset(ref)
    if contact_sheet is not None:
        from affinery_app.wiring import open_workspace

        _write_contact_sheet(open_workspace(workspace), record, contact_sheet)
    if as_json:
        emit(record.to_json() | ({"contact_sheet": str(contact_sheet)} if contact_sheet else {}))
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
            *([("contact sheet", contact_sheet)] if contact_sheet else []),
        ]
    )
    tell_balance(record)


def _write_contact_sheet(space: Workspace, record: DatasetRecord, path: Path) -> None:
    from affinery import tensor_files
    from orchestration.datasets import ensure
    from orchestration.datasets.contact_sheet import contact_sheet

    pack = ensure(space.data, record.dvc_path, record.digest)
    tensor_files.write_whole(path.absolute(), contact_sheet(pack, record.ref))


app.add_typer(dataset_copies.remote, name="remote")
app.command("verify")(dataset_copies.verify)
app.command("pull")(dataset_copies.pull)
app.command("push")(dataset_copies.push)
app.command("upgrade")(rebase.upgrade)
app.command("adopt")(dataset_adopt.adopt)

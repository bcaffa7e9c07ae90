"""affinery dataset add | list | show | versions | verify | pull | push | remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.elsewhere import UrlOption, records
from affinery_app.cli.output import (
    JsonOption,
    WorkspaceOption,
    emit,
    fields,
    following,
    printable,
    say,
    size,
    table,
)

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from orchestration.datasets.states import State
    from registry.records import DatasetRecord

app = typer.Typer(help="Images to learn from, pinned by content under DVC.", no_args_is_help=True)
remote = typer.Typer(help="Where DVC keeps further copies of datasets.", no_args_is_help=True)
app.add_typer(remote, name="remote")

RefsArgument = Annotated[list[str] | None, typer.Argument(help="Versions: name, name@version or a digest.")]
RemoteOption = Annotated[str | None, typer.Option("--remote", help="This remote alone.")]


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
    licence: Annotated[str | None, typer.Option(help="Under what terms the images are.")] = None,
    origin: Annotated[str | None, typer.Option("--source", help="Where they come from, in words.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split to learn from, or all.", show_default="train")
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad/--strict", help="Leave out images that cannot be learnt from, instead of refusing."
        ),
    ] = False,
    image_column: Annotated[str | None, typer.Option(help="Parquet: the column of images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Parquet: the column of classes.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Parquet: the column of captions.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check images, put them under DVC, record their version. The same images change nothing."""
    from affinery_app.wiring import open_workspace
    from orchestration.additions import add_dataset
    from orchestration.datasets.tables import Columns

    space = open_workspace(workspace)
    with _bars(name) as advance:
        record, notes = add_dataset(
            space.sessions,
            space.data,
            source,
            name=name,
            licence=licence,
            source=origin,
            split=split,
            skip_bad=skip_bad,
            columns=Columns(image_column, label_column, text_column),
            on_progress=advance,
        )
    for note in notes:
        say(f"note: {printable(note)}")
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
    _balance(record)
    following(
        f"affinery dataset show {record.name} --contact-sheet {record.name}.png",
        f"affinery task add {record.name} --dataset {record.name} --backbone NAME",
    )


@contextmanager
def _bars(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is done with a dataset, one after another."""
    from affinery_app.cli.progress import bars

    with bars() as progress:
        entries: dict[str, Any] = {}

        def advance(doing: str, done: int, of: int) -> None:
            if doing not in entries:
                entries[doing] = progress.add_task(f"{doing} {printable(name)}", total=of, note="")
            progress.update(entries[doing], completed=done, total=of)

        yield advance


def _balance(record: DatasetRecord) -> None:
    """How many images each class has."""
    most = max(record.class_counts)
    rows = [
        (name, f"{count:,}", f"{count / record.image_count:.1%}", "█" * max(1, round(24 * count / most)))
        for name, count in zip(record.classes, record.class_counts, strict=True)
    ]
    print()
    table(["class", "images", "share", ""], rows, "", numbers=("images", "share"))


@app.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All datasets, each in its newest version; their versions: affinery dataset versions NAME."""
    from affinery_app.wiring import open_workspace
    from registry import datasets
    from registry.records import DatasetRecord

    if url:
        found = records(url, workspace, "datasets", DatasetRecord, "name", "version")
    else:
        with open_workspace(workspace).sessions.read() as session:
            found = datasets.list_all(session)
    if as_json:
        emit([record.to_json() for record in found])
        return
    newest = {record.name: record for record in found}
    _list(list(newest.values()), "No dataset yet. Add one: affinery dataset add NAME FOLDER")


@app.command("versions")
def versions(
    name: Annotated[str, typer.Argument(help="The dataset.", autocompletion=completion.datasets)],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every version of a dataset, oldest first. Each stays retrievable by its pin."""
    from affinery_app.wiring import open_workspace
    from registry import datasets

    with open_workspace(workspace).sessions.read() as session:
        wanted = datasets.get(session, name).name
        records = [record for record in datasets.list_all(session) if record.name == wanted]
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
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """One dataset version: its pins and its classes."""
    from affinery_app.wiring import open_workspace
    from registry import datasets

    space = open_workspace(workspace)
    with space.sessions.read() as session:
        record = datasets.get(session, ref)
    if contact_sheet is not None:
        _write_contact_sheet(space, record, contact_sheet)
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
    _balance(record)


def _write_contact_sheet(space: Workspace, record: DatasetRecord, path: Path) -> None:
    from affinery import tensor_files
    from orchestration.datasets import ensure
    from orchestration.datasets.contact_sheet import contact_sheet

    pack = ensure(space.data, record.dvc_path, record.digest)
    tensor_files.write_whole(path.absolute(), contact_sheet(pack, record.ref))


@app.command("verify")
def verify(
    refs: RefsArgument = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the remotes.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of datasets (all where none is named) and ask each remote for its copy. Exits 1 where
    something is missing or changed."""
    from affinery_app.wiring import open_workspace
    from orchestration.datasets.states import state_of

    space = open_workspace(workspace)
    found: list[tuple[DatasetRecord, State]] = []
    chosen = _chosen(space, refs)
    with _bars("datasets") as advance:
        for done, record in enumerate(chosen, start=1):
            state = state_of(space.data, record, remote=not offline)
            found.append((record, state))
            advance("verifying", done, len(chosen))
    if as_json:
        emit([_stated(record, state) for record, state in found])
    else:
        table(
            ["dataset", "here", "pinned", "remotes", "what differs"],
            [
                (
                    record.ref,
                    state.pack,
                    "yes" if state.pinned else "no",
                    ", ".join(f"{place.remote}: {place.state}" for place in state.places) or "–",
                    state.reason or "–",
                )
                for record, state in found
            ],
            "No dataset yet. Add one: affinery dataset add NAME FOLDER",
        )
    bad = [record for record, state in found if not state.sound]
    if bad:
        if not as_json:
            say(f"{len(bad)} of {len(found)} are not as they were recorded. What can be mended is by:")
            say("  affinery reconcile")
        raise typer.Exit(1)


def _stated(record: DatasetRecord, state: State) -> dict[str, Any]:
    from dataclasses import asdict

    return {"dataset": record.ref, "digest": record.digest, "sound": state.sound} | asdict(state)


def _chosen(space: Workspace, refs: list[str] | None) -> list[DatasetRecord]:
    """The versions that are named; all where none is."""
    from registry import datasets

    with space.sessions.read() as session:
        if refs:
            return [datasets.get(session, ref) for ref in refs]
        return datasets.list_all(session)


@app.command("pull")
def pull(
    refs: RefsArgument = None,
    remote_name: RemoteOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Put back what was pinned over files that were changed.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring datasets (all where none is named) here, every byte checked. Training does this itself."""
    from affinery_app.wiring import open_workspace
    from orchestration.datasets import repository
    from trainers import packs

    space = open_workspace(workspace)
    done: list[dict[str, Any]] = []
    for record in _chosen(space, refs):
        target = space.data / record.dvc_path
        there = all((target / name).exists() for name in (packs.IMAGES, packs.MANIFEST))
        if there and (not force or repository.is_whole(target, record.digest)):
            packs.verify_pack(target, record.digest)
            done.append({"dataset": record.ref, "path": str(target), "fetched": False})
            continue
        repository.restore(space.data, record.dvc_path, record.digest, remote_name)
        done.append({"dataset": record.ref, "path": str(target), "fetched": True})
    if as_json:
        emit(done)
        return
    rows = [(each["dataset"], "fetched" if each["fetched"] else "was here", each["path"]) for each in done]
    table(["dataset", "", "where"], rows, "No dataset yet. Add one: affinery dataset add NAME FOLDER")


@app.command("push")
def push(
    refs: RefsArgument = None,
    remote_name: RemoteOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy datasets (all where none is named) to a remote: the default one, or the one that is named."""
    from affinery_app.wiring import open_workspace
    from orchestration.datasets import ensure, repository

    space = open_workspace(workspace)
    to = remote_name or next(each.name for each in repository.remotes(space.data) if each.default)
    done = []
    for record in _chosen(space, refs):
        ensure(space.data, record.dvc_path, record.digest)
        repository.push(space.data, record.dvc_path, to)
        done.append({"dataset": record.ref, "remote": to})
    if as_json:
        emit(done)
        return
    rows = [(each["dataset"], each["remote"]) for each in done]
    table(["dataset", "remote"], rows, "No dataset yet. Add one: affinery dataset add NAME FOLDER")


@remote.command("add")
def add_remote(
    name: Annotated[str, typer.Argument(help="Its name.")],
    url: Annotated[str, typer.Argument(help="A folder, or s3://bucket/prefix.")],
    default: Annotated[
        bool, typer.Option("--default", help="Copy what is added there by itself from now on.")
    ] = False,
    endpoint_url: Annotated[
        str | None, typer.Option(help="S3: the store's address, if not Amazon's.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="S3: the region.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="S3: whose credentials of ~/.aws; or set AWS_ACCESS_KEY_ID and so on.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a remote, or change one. No credentials are written down."""
    from affinery_app.wiring import open_workspace
    from orchestration.datasets import repository

    space = open_workspace(workspace)
    given = {"endpointurl": endpoint_url, "region": region, "profile": profile}
    options = {key: value for key, value in given.items() if value is not None}
    repository.add_remote(space.data, name, url, options, default=default)
    _show_remotes(space, as_json)
    following(f"affinery dataset push --remote {name}")


@remote.command("list")
def list_remotes(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """The remotes, the default one first."""
    from affinery_app.wiring import open_workspace

    _show_remotes(open_workspace(workspace), as_json)


@remote.command("remove")
def remove_remote(
    name: Annotated[str, typer.Argument(help="The remote, as affinery dataset remote list names it.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget a remote. What lies in it stays there."""
    from affinery_app.wiring import open_workspace
    from orchestration.datasets import repository

    space = open_workspace(workspace)
    repository.remove_remote(space.data, name)
    _show_remotes(space, as_json)


def _show_remotes(space: Workspace, as_json: bool) -> None:
    from dataclasses import asdict

    from orchestration.datasets import repository

    found = repository.remotes(space.data)
    if as_json:
        emit([asdict(each) for each in found])
        return
    table(["remote", "url", ""], [(r.name, r.url, "default" if r.default else "") for r in found], "")

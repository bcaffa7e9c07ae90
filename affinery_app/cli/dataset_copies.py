"""affinery dataset verify | pull | push | remote: the copies of datasets, here and elsewhere."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, following, say, table
from affinery_app.cli.progress import stages

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from orchestration.datasets.states import State
    from registry.records import DatasetRecord

remote = typer.Typer(help="Where DVC keeps further copies of datasets.", no_args_is_help=True)
RefsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Versions: name, name@version or a digest.", autocompletion=completion.datasets),
]
RemoteOption = Annotated[str | None, typer.Option("--remote", help="This remote alone.")]


def verify(
    refs: RefsArgument = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the remotes.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of datasets (all where none is named) and ask each remote for its copy.

    Exits 1 where something is missing or changed.
    """
    from affinery_app.wiring import open_workspace
    from orchestration.datasets.states import state_of

    space = open_workspace(workspace)
    found: list[tuple[DatasetRecord, State]] = []
    chosen = _chosen(space, refs)
    with stages("datasets") as advance:
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
    following(f"affinery dataset push --remote {quote(name)}")


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

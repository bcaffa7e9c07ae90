"""affinery tag, affinery note."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, say

RefArgument = Annotated[
    str,
    typer.Argument(help="A backbone, dataset, task, adapter, composition or export, such as dataset:digits."),
]


def tag(
    ref: RefArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Tags to set.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A key to take away; repeat for more.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set tags on anything that is recorded, take them away, or show them."""
    from affinery_app.wiring import open_workspace
    from registry import tags as record

    given = _pairs(tags or [])
    sessions = open_workspace(workspace).sessions
    with sessions.begin() if given or remove else sessions.read() as session:
        node = record.subject(session, ref, "tag")
        if remove:
            record.remove(session, node.full_ref, remove)
        if given:
            record.put(session, node.full_ref, given)
        held = record.of(session, node.node_id)
    if as_json:
        emit({"ref": node.full_ref, "tags": held})
        return
    if not held:
        say(f"{node.full_ref} has no tag.")
    fields(held.items())


def note(
    ref: RefArgument,
    text: Annotated[
        str | None, typer.Argument(help="What to say about it, in place of what is said.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the note away.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a note on anything that is recorded, take it away, or read it."""
    from affinery.errors import ConfigInvalid
    from affinery_app.wiring import open_workspace
    from registry import notes

    if remove and text is not None:
        raise ConfigInvalid("--remove", "a text was given too; a note is either written or taken away.")
    sessions = open_workspace(workspace).sessions
    with sessions.begin() if remove or text is not None else sessions.read() as session:
        if remove:
            held = notes.remove(session, ref)
        elif text is not None:
            held = notes.write(session, ref, text)
        else:
            held = notes.read(session, ref)
    if as_json:
        emit(held.to_json())
    elif held.text is None:
        say(f"{held.ref} has no note.")
    else:
        for line in held.text.splitlines():
            print(line)


def _pairs(texts: list[str]) -> dict[str, str]:
    from affinery.errors import ConfigInvalid

    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigInvalid("tag", f"{text!r} is not of the form key=value.")
        pairs[key.strip()] = value
    return pairs

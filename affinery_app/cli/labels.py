"""affinery tag, affinery note."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, say
from affinery_app.cli.place import UrlOption, place

RefArgument = Annotated[
    str,
    typer.Argument(
        help="A backbone, dataset, task, adapter, composition or export, such as dataset:digits.",
        autocompletion=completion.things,
    ),
]


def tag(
    ref: RefArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Tags to set.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A key to take away; repeat for more.")] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set tags on anything that is recorded, take them away, or show them."""
    given = _pairs(tags or [])
    with place(url, workspace) as where:
        named, held = where.tag(ref, given, remove or ())
    if as_json:
        emit({"ref": named, "tags": held})
        return
    if not held:
        say(f"{named} has no tag.")
    fields(held.items())


def note(
    ref: RefArgument,
    text: Annotated[
        str | None, typer.Argument(help="What to say about it, in place of what is said.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the note away.")] = False,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a note on anything that is recorded, take it away, or read it."""
    from affinery.errors import ConfigInvalid

    if remove and text is not None:
        raise ConfigInvalid("--remove", "a text was given too; a note is either written or taken away.")
    with place(url, workspace) as where:
        held = where.note(ref, text, remove)
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

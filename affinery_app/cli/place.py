"""Where a command is done: in a workspace on this machine, or by a service elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from affinery_app.cli.here import Here
    from affinery_app.cli.there import There


class Typed(str):
    """An address that was typed, and not taken from a variable."""


def _typed(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
    source = context.get_parameter_source(str(option.name))
    return Typed(value) if value and source is not None and source.name == "COMMANDLINE" else value


UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Ask the service at this address, not a workspace; AFFINERY_TOKEN has the token.",
        envvar="AFFINERY_URL",
        callback=_typed,
        show_default="none",
    ),
]


@contextmanager
def place(url: str | None, workspace: Path | None) -> Iterator[Here | There]:
    """What the command speaks to: both have the same verbs, and give the same records.

    Raises ConfigInvalid where both are named, and what opening a workspace raises.
    """
    service = address(url, workspace)
    if service is None:
        from affinery_app.cli.here import Here
        from affinery_app.wiring import open_workspace

        yield Here(open_workspace(workspace))
        return
    from affinery_app.cli.there import There
    from affinery_app.client import Client

    with Client(service, os.environ.get("AFFINERY_TOKEN")) as client:
        yield There(client)


def address(url: str | None, workspace: Path | None) -> str | None:
    """The service that is meant; None where a workspace is. What is typed counts before a variable.

    Raises ConfigInvalid where both are typed, or both variables are set and nothing is.
    """
    from affinery.errors import ConfigInvalid

    if not url:
        return None
    if workspace is not None:
        typed, variable = isinstance(url, Typed), os.environ.get("AFFINERY_WORKSPACE")
        if typed == (not variable or workspace != Path(variable)):
            names = ("--url", "--workspace") if typed else ("AFFINERY_URL", "AFFINERY_WORKSPACE")
            told = f"{names[1]} names the workspace {workspace} too; give one of them."
            raise ConfigInvalid(names[0], told)
        if not typed:
            return None
    if not url.startswith(("http://", "https://")):
        raise ConfigInvalid("--url", f"{url!r} is no address of a service: write http://… or https://…")
    return url

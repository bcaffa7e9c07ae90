"""The registry of a service, read by the commands that read the one of a workspace."""

from __future__ import annotations

import os
from dataclasses import fields
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import typer


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=_Dataclass)
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Ask the service at this address, not a workspace; AFFINERY_TOKEN has the token.",
        envvar="AFFINERY_URL",
        show_default="none",
    ),
]


def records(
    url: str, workspace: Path | None, noun: str, kind: type[Record], *by: str, **query: str
) -> list[Record]:
    """Everything of a noun that the service has, in the order of these fields. noun: as the client calls it.

    Raises ConfigInvalid where a workspace is meant too, ServiceRefused and ServiceUnreachable.
    """
    from affinery.errors import ConfigInvalid
    from affinery_app.client import Client

    if workspace is not None:
        raise ConfigInvalid("--url", f"the workspace {workspace} is named too; give one of them.")
    if not url.startswith(("http://", "https://")):
        raise ConfigInvalid("--url", f"{url!r} is no address of a service: write http://… or https://…")
    with Client(url, os.environ.get("AFFINERY_TOKEN")) as client:
        found = [_record(kind, each) for each in getattr(client, noun).list(**query)]
    return sorted(found, key=attrgetter(*by))


def _record(kind: type[Record], told: dict[str, Any]) -> Record:
    """What to_json made of a record, a record again. What this version does not know of is passed over."""
    return kind(**{each.name: _value(str(each.type), told[each.name]) for each in fields(kind)})


def _value(declared: str, told: Any) -> Any:
    if declared.startswith("datetime") and isinstance(told, str):
        return datetime.fromisoformat(told)
    return tuple(told) if declared.startswith("tuple") and isinstance(told, list) else told

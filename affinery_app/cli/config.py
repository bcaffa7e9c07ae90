"""affinery config list | show | set | unset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table

if TYPE_CHECKING:
    from affinery_app.settings import Setting

app = typer.Typer(help="The workspace's settings, and where each comes from.", no_args_is_help=True)
NameArgument = Annotated[
    str,
    typer.Argument(help="The setting, as affinery config list names it.", autocompletion=completion.settings),
]


@app.command("list")
def list_all(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Every setting, its value, and what says so: a variable, the file or its default."""
    from affinery_app import settings

    folder = settings.chosen(workspace)
    written = settings.in_file(folder)
    found = [_told(setting, folder, written) for setting in settings.SETTINGS]
    if as_json:
        emit({"workspace": str(folder), "settings": found})
        return
    table(["setting", "value", "from"], [(one["name"], one["value"], one["source"]) for one in found], "")
    following("affinery config show registry_url", "affinery doctor")


@app.command("show")
def show(name: NameArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """One setting: what it is, where its value comes from, and how to set it."""
    from affinery_app import settings

    folder = settings.chosen(workspace)
    chosen = settings.setting(name)
    told = _told(chosen, folder, settings.in_file(folder))
    if as_json:
        emit(told)
        return
    fields([(key, value) for key, value in told.items() if key not in ("example", "variable")])
    fields(
        [
            ("to set it", f"affinery config set {chosen.name} {chosen.example}"),
            ("or, over the file", f"export {chosen.variable}={chosen.example}"),
        ]
    )


@app.command("set")
def put(
    name: NameArgument,
    value: Annotated[str, typer.Argument(help="Its value.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a setting into the workspace's affinery.toml. What is kept elsewhere already does not move."""
    from affinery_app import settings

    chosen = settings.setting(name)
    _check(chosen.name, value)
    _change(chosen, value, settings.chosen(workspace), as_json)


@app.command("unset")
def remove(name: NameArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Take a setting out of affinery.toml: its default holds again."""
    from affinery_app import settings

    _change(settings.setting(name), None, settings.chosen(workspace), as_json)


def _change(setting: Setting, value: str | None, folder: Path, as_json: bool) -> None:
    from affinery_app import settings

    settings.write(folder, setting.name, value)
    told = _told(setting, folder, settings.in_file(folder))
    if as_json:
        emit(told)
        return
    fields([(told["name"], told["value"]), ("from", told["source"])])
    if told["source"] == setting.variable:
        say(f"note: {setting.variable} is set here and wins over the file.")
    following("affinery doctor")


def _told(setting: Setting, folder: Path, written: dict[str, str]) -> dict[str, Any]:
    default = None if setting.default is None else setting.default.format(workspace=folder)
    value, source = default, "default"
    if setting.name in written:
        value, source = written[setting.name], "affinery.toml"
    if os.environ.get(setting.variable):
        value, source = os.environ[setting.variable], setting.variable
    return {
        "name": setting.name,
        "value": None if value is None else _without_password(value),
        "source": source,
        "about": setting.about,
        "variable": setting.variable,
        "default": default,
        "example": setting.example,
    }


def _without_password(value: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(value)
    if "@" not in parts.netloc:
        return value
    who, _, where = parts.netloc.rpartition("@")
    hidden = f"{who.partition(':')[0]}:***" if ":" in who else who
    return parts._replace(netloc=f"{hidden}@{where}").geturl()


def _check(name: str, value: str) -> None:
    """Refuses what could not be used. Raises what the part itself says of it."""
    from affinery.errors import ConfigInvalid

    if not value.strip() or any(not character.isprintable() for character in value):
        raise ConfigInvalid(name, "it is empty, or holds what cannot be printed.")
    if name == "registry_url":
        from sqlalchemy.exc import ArgumentError

        from registry.session import connect

        try:
            connect(value).dispose()
        except ArgumentError as error:
            raise ConfigInvalid(
                name, f"{value!r} is no address: write postgresql://… or sqlite:///…"
            ) from error
    elif name == "store_url" and "://" in value:
        from registry.errors import StorageUnknown
        from registry.storage import schemes

        scheme = value.partition("://")[0]
        if scheme not in schemes():
            raise StorageUnknown(scheme, sorted(schemes()))
    elif name == "tracking_uri" and not value.startswith(("http://", "https://", "sqlite:///")):
        raise ConfigInvalid(name, f"{value!r} is neither http://…, https://… nor sqlite:///…")
    elif name == "ray_address":
        from orchestration.ray_train import check_address

        check_address(value)

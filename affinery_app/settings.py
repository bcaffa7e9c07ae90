"""Where a workspace keeps what it keeps. Everything has a default below one folder; a team points elsewhere.

affinery.toml in the workspace says it, and environment variables win over it: SETTINGS below has them all.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from affinery.errors import ConfigInvalid, UnknownName
from affinery_app.errors import UrlNotTaken, WorkspaceInvalid, WorkspaceMissing

FILE = "affinery.toml"
DEFAULT = "affinery-workspace"
SCHEMA = 1


@dataclass(frozen=True)
class Setting:
    """One thing that can be set in the file, or by its variable. default: {workspace} is the folder."""

    name: str
    variable: str
    about: str
    default: str | None
    example: str


SETTINGS = (
    Setting(
        "registry_url",
        "AFFINERY_REGISTRY_URL",
        "the SQL registry and the queue: sqlite or postgresql",
        "sqlite:///{workspace}/registry.db",
        "postgresql://affinery@db/affinery",
    ),
    Setting(
        "store_url",
        "AFFINERY_STORE_URL",
        "backbones, adapters and golden images: a folder, or an S3-compatible store",
        "{workspace}/blobs",
        "s3://bucket/prefix?endpoint=https://store:7070",
    ),
    Setting(
        "tracking_uri",
        "AFFINERY_TRACKING_URI",
        "MLflow: a server, or a SQLite file",
        "sqlite:///{workspace}/mlflow/mlflow.db",
        "http://mlflow:5000",
    ),
    Setting(
        "ray_address",
        "AFFINERY_RAY_ADDRESS",
        "a Ray cluster: auto, host:port, or http://host:8265; without one each worker starts its own",
        None,
        "http://ray-head:8265",
    ),
    Setting(
        "webhook_hosts",
        "AFFINERY_WEBHOOK_HOSTS",
        "hosts that webhooks may be sent to though their addresses are not public, with commas between",
        None,
        "chat.lab,10.0.0.7",
    ),
)
VARIABLES = {setting.name: setting.variable for setting in SETTINGS}
ENVIRONMENT = {
    "AFFINERY_WORKSPACE": "the workspace's folder, where --workspace does not name it",
    "AFFINERY_URL": "the service that commands ask, where --url does not name it",
    "AFFINERY_TOKEN": "what is shown to that service; and what affinery serve takes beside tokens of its own",
}
"""Variables that stand in no file."""
HEADER = """# An Affinery workspace. What is not set here has its default below this folder; the variables
# AFFINERY_REGISTRY_URL, _STORE_URL, _TRACKING_URI, _RAY_ADDRESS and _WEBHOOK_HOSTS win over it.
schema = 1
# registry_url = "postgresql://affinery@db/affinery"
# store_url = "/srv/affinery/blobs", or "s3://bucket/prefix?endpoint=https://store:7070"
# tracking_uri = "http://mlflow:5000"
# ray_address = "auto"
# webhook_hosts = "chat.lab"
"""


@dataclass(frozen=True)
class Settings:
    """The workspace's addresses, as the file and the environment give them."""

    registry_url: str | None = None
    store_url: str | None = None
    tracking_uri: str | None = None
    ray_address: str | None = None
    webhook_hosts: str | None = None


def chosen(folder: Path | None) -> Path:
    """The workspace that is meant: the one given, AFFINERY_WORKSPACE, or ./affinery-workspace.

    Raises UrlNotTaken where a service is meant instead: nobody is to write here what was meant for there.
    """
    if folder is None and os.environ.get("AFFINERY_URL") and not os.environ.get("AFFINERY_WORKSPACE"):
        raise UrlNotTaken(os.environ["AFFINERY_URL"])
    return (folder or Path(os.environ.get("AFFINERY_WORKSPACE") or DEFAULT)).absolute()


def read(folder: Path) -> Settings:
    """The settings of a workspace. Raises WorkspaceMissing or WorkspaceInvalid."""
    path = folder / FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorkspaceMissing(str(folder)) from error
    except (OSError, ValueError) as error:
        raise WorkspaceInvalid(str(path), str(error)) from error
    schema = values.pop("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise WorkspaceInvalid(
            str(path), f"its schema is {schema}, and this Affinery knows {SCHEMA}: install a newer Affinery"
        )
    for name, variable in VARIABLES.items():
        if os.environ.get(variable):
            values[name] = os.environ[variable]
    for name, value in values.items():
        if name not in VARIABLES:
            raise WorkspaceInvalid(str(path), f"it sets {name!r}; there are {', '.join(VARIABLES)}")
        if not isinstance(value, str):
            raise WorkspaceInvalid(str(path), f"{name} is to be a text in quotes, and is {value}")
    return Settings(**values)


def in_file(folder: Path) -> dict[str, str]:
    """What the file itself sets, whatever the environment says."""
    read(folder)
    found = tomllib.loads((folder / FILE).read_text(encoding="utf-8"))
    return {name: found[name] for name in VARIABLES if name in found}


def setting(name: str) -> Setting:
    """The setting of this name. Raises UnknownName."""
    found = {each.name: each for each in SETTINGS} | {each.variable: each for each in SETTINGS}
    if name not in found:
        raise UnknownName("setting", name, list(VARIABLES))
    return found[name]


def write(folder: Path, name: str, value: str | None) -> None:
    """Sets one thing in the file, or takes it out; the rest of the file stays as it is, remarks and all.

    Raises ConfigInvalid where the file is written in a way that this cannot follow.
    """
    from affinery import tensor_files

    before = in_file(folder)
    path = folder / FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not re.match(rf"\s*{name}\s*=", line)]
    if value is not None:
        kept.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    text = "\n".join(kept) + "\n"
    wanted = {key: held for key, held in before.items() if key != name}
    wanted |= {} if value is None else {name: value}
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        found = {}
    if {key: found.get(key) for key in wanted} != wanted or name in found.keys() - wanted.keys():
        raise ConfigInvalid(str(path), f"set {name} there by hand: it is not written a line a setting.")
    tensor_files.write_whole(path, text.encode())

"""Where a workspace keeps what it keeps. Everything has a default below one folder; a team points elsewhere.

affinery.toml in the workspace, over which environment variables win:

registry_url   AFFINERY_REGISTRY_URL   sqlite:///<workspace>/registry.db   the SQL registry and queue
store_url      AFFINERY_STORE_URL      <workspace>/blobs                   backbones, adapters, golden images:
                                                                           a folder, or s3://bucket/prefix?…
tracking_uri   AFFINERY_TRACKING_URI   sqlite:///<workspace>/mlflow/mlflow.db
ray_address    AFFINERY_RAY_ADDRESS    none: Ray runs inside the worker

AFFINERY_TOKEN is a token that `affinery serve` takes beside those of `affinery token create`.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from affinery_app.errors import WorkspaceInvalid, WorkspaceMissing

FILE = "affinery.toml"
DEFAULT = "affinery-workspace"
SCHEMA = 1
VARIABLES = {
    "registry_url": "AFFINERY_REGISTRY_URL",
    "store_url": "AFFINERY_STORE_URL",
    "tracking_uri": "AFFINERY_TRACKING_URI",
    "ray_address": "AFFINERY_RAY_ADDRESS",
}
HEADER = """# An Affinery workspace. What is not set here has its default below this folder; the variables
# AFFINERY_REGISTRY_URL, _STORE_URL, _TRACKING_URI and AFFINERY_RAY_ADDRESS win over it.
schema = 1
# registry_url = "postgresql://affinery@db/affinery"
# store_url = "/srv/affinery/blobs", or "s3://bucket/prefix?endpoint=https://store:7070"
# tracking_uri = "http://mlflow:5000"
# ray_address = "auto"
"""


class Settings(BaseModel):
    """The workspace's addresses, as the file and the environment give them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: int = SCHEMA
    registry_url: str | None = None
    store_url: str | None = None
    tracking_uri: str | None = None
    ray_address: str | None = None


def chosen(folder: Path | None) -> Path:
    """The workspace that is meant: the one given, AFFINERY_WORKSPACE, or ./affinery-workspace."""
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
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise WorkspaceInvalid(str(path), f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

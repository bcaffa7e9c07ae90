"""The one place that chooses implementations: from a workspace's settings to the parts that do the work."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from affinery_app import settings as settings_file
from affinery_app.errors import WorkspaceInvalid, WorkspaceUnusable
from affinery_app.settings import Settings
from registry import session as database
from registry.session import Sessions
from registry.storage.contract import BlobStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from affinery_app.api.access import Token
    from orchestration.services import Services
    from orchestration.tracking import Tracking


@dataclass(frozen=True)
class Workspace:
    """One workspace, its parts made when first asked for."""

    folder: Path
    settings: Settings

    @property
    def registry_url(self) -> str:
        return self.settings.registry_url or f"sqlite:///{self.folder / 'registry.db'}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def evaluations(self) -> Path:
        return self.folder / "evaluations"

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    @cached_property
    def sessions(self) -> Sessions:
        """The registry's transactions. Raises what `check_schema` raises."""
        engine = database.connect(self.registry_url)
        database.check_schema(engine)
        return database.sessions(engine)

    def unchecked_engine(self, patience_seconds: int = database.BUSY_SECONDS) -> Engine:
        """A way to a registry that may be damaged: what looks for the damage has to get in."""
        return database.connect(self.registry_url, patience_seconds=patience_seconds)

    @property
    def store_url(self) -> str:
        return self.settings.store_url or str(self.folder / "blobs")

    @cached_property
    def store(self) -> BlobStore:
        from registry.storage import open_store

        return open_store(self.store_url)

    @property
    def token(self) -> Token | None:
        """One that the service takes beside those of the registry: AFFINERY_TOKEN, which may everything."""
        from affinery_app.api.access import Token

        secret = os.environ.get("AFFINERY_TOKEN")
        return Token.of(secret) if secret else None

    @property
    def webhook_hosts(self) -> frozenset[str]:
        """Hosts that webhooks may be sent to wherever they are."""
        told = (self.settings.webhook_hosts or "").split(",")
        return frozenset(each.strip().strip("[]").lower() for each in told if each.strip())

    @cached_property
    def tracking(self) -> Tracking:
        from orchestration.tracking import open_tracking

        uri = self.settings.tracking_uri or f"sqlite:///{self.folder / 'mlflow' / 'mlflow.db'}"
        return open_tracking(
            uri, self.folder / "mlflow" / "artifacts", spool=self.folder / "mlflow" / "spool"
        )

    def services(self) -> Services:
        """What a worker works with."""
        from orchestration.services import Services

        return Services(
            self.sessions,
            self.store,
            self.tracking,
            self.data,
            self.runs,
            self.settings.ray_address,
            self.store_url,
        )


def open_workspace(folder: Path | None) -> Workspace:
    """The workspace that is meant. Raises WorkspaceMissing or WorkspaceInvalid."""
    where = settings_file.chosen(folder)
    return Workspace(where, settings_file.read(where))


def create_workspace(folder: Path | None) -> tuple[Workspace, bool]:
    """Makes a workspace, or brings one up to date. → it, and whether it is new

    Raises WorkspaceUnusable where it cannot be written, WorkspaceInvalid where something else is there.
    """
    where = settings_file.chosen(folder)
    path = where / settings_file.FILE
    new = not path.exists()
    # A first run that was interrupted left the settings for last: what it made is recognised by its database.
    if new and not (where / "registry.db").exists() and _is_taken(where):
        raise WorkspaceInvalid(str(where), "there is something else here; choose an empty folder")
    try:
        where.mkdir(parents=True, exist_ok=True)
        with locked(where):
            _fill(where, path)
    except OSError as error:
        raise WorkspaceUnusable(str(where), error.strerror or str(error)) from error
    return open_workspace(where), new


def _is_taken(where: Path) -> bool:
    return where.exists() and (not where.is_dir() or any(path.name != ".lock" for path in where.iterdir()))


def _fill(where: Path, path: Path) -> None:
    """Registry, store, data and the settings: the settings last: they say that the workspace is whole."""
    import migrations
    from affinery import tensor_files
    from orchestration.datasets import init_data

    space = Workspace(where, settings_file.read(where) if path.exists() else Settings(**_environment()))
    migrations.upgrade(space.registry_url)
    for sub in ("runs", "exports", "mlflow/artifacts"):
        (where / sub).mkdir(parents=True, exist_ok=True)
    _ = space.store
    init_data(space.data)
    if not path.exists():
        tensor_files.write_whole(path, settings_file.HEADER.encode())


def _environment() -> dict[str, str]:
    return {
        name: os.environ[variable]
        for name, variable in settings_file.VARIABLES.items()
        if os.environ.get(variable)
    }


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two processes that make the same workspace, or run the same demo, wait for each other here."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

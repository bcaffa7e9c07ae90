"""What the worker works with, chosen by the application, and whom it tells what it does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestration.certificates import Certificate
from orchestration.jobs import JobRecord
from orchestration.ray_train import ProgressLine
from orchestration.tracking import Tracking, open_tracking
from registry import session as database
from registry.records import AdapterRecord
from registry.session import Sessions
from registry.storage import open_store
from registry.storage.contract import BlobStore


@dataclass(frozen=True)
class Places:
    """Where everything is, as another process is told it. Its addresses may hold secrets: pipes only."""

    registry: str
    store: str
    tracking: str
    artifacts: str
    spool: str
    data: str
    runs: str
    ray: str | None

    def open(self) -> Services:
        return Services(
            database.sessions(database.connect(self.registry)),
            open_store(self.store),
            open_tracking(self.tracking, Path(self.artifacts), Path(self.spool)),
            Path(self.data),
            Path(self.runs),
            self.ray,
            self.store,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Services:
    """data: the DVC repository; runs: the attempts' checkpoints; ray_address: None runs Ray here.

    cache, beside the runs: what is made of datasets once, like latents; it may be deleted at any time.
    store_url: where `store` is, for the processes that a worker starts.
    """

    sessions: Sessions
    store: BlobStore
    tracking: Tracking
    data: Path
    runs: Path
    ray_address: str | None = None
    store_url: str = ""

    @property
    def cache(self) -> Path:
        return self.runs.parent / "cache"

    @property
    def exports(self) -> Path:
        return self.runs.parent / "exports"

    @property
    def evaluations(self) -> Path:
        return self.runs.parent / "evaluations"

    @property
    def places(self) -> Places:
        return Places(
            self.sessions.engine.url.render_as_string(hide_password=False),
            self.store_url,
            self.tracking.uri,
            str(self.tracking.artifacts),
            str(self.tracking.spool),
            str(self.data),
            str(self.runs),
            self.ray_address,
        )


class Listener(Protocol):
    """Hears what a worker does, as it does it. What it raises ends the job's attempt."""

    def started(self, job: JobRecord, resumed_from: int) -> None: ...

    def progress(self, job: JobRecord, line: ProgressLine) -> None: ...

    def stage(self, job: JobRecord, doing: str) -> None: ...

    def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None: ...

    def done(self, job: JobRecord, result: dict[str, Any]) -> None:
        """A job that trains nothing is done."""
        ...

    def failed(self, job: JobRecord, error: Exception, state: str) -> None: ...

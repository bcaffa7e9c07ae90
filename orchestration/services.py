"""What the worker works with, chosen by the application, and whom it tells what it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestration.certificates import Certificate
from orchestration.jobs import JobRecord
from orchestration.ray_train import ProgressLine
from orchestration.tracking import Tracking
from registry.records import AdapterRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore


@dataclass(frozen=True)
class Services:
    """data: the DVC repository; runs: the attempts' checkpoints; ray_address: None runs Ray here.

    cache, beside the runs: what is made of datasets once, like latents; it may be deleted at any time.
    """

    sessions: Sessions
    store: BlobStore
    tracking: Tracking
    data: Path
    runs: Path
    ray_address: str | None = None

    @property
    def cache(self) -> Path:
        return self.runs.parent / "cache"


class Listener(Protocol):
    """Hears what a worker does, as it does it. What it raises ends the job's attempt."""

    def started(self, job: JobRecord, resumed_from: int) -> None: ...

    def progress(self, job: JobRecord, line: ProgressLine) -> None: ...

    def stage(self, job: JobRecord, doing: str) -> None: ...

    def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None: ...

    def failed(self, job: JobRecord, error: Exception, state: str) -> None: ...

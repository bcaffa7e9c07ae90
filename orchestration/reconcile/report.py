"""All neighbours, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.reconcile import attempts, blobs, datasets, mlflow_runs, ray_folders
from orchestration.reconcile.findings import Finding, Progress
from orchestration.services import Services

Neighbour = Callable[[Services, bool, Progress], Iterator[Finding]]
NEIGHBOURS: dict[str, Neighbour] = {
    "datasets": datasets.reconcile,
    "blobs": blobs.reconcile,
    "mlflow": mlflow_runs.reconcile,
    "attempts": attempts.reconcile,
    "ray": ray_folders.reconcile,
}
"""Attempts after MLflow: what is still to be uploaded may lie in their folders."""


@dataclass(frozen=True)
class Reconciliation:
    """What was found. remaining: that of which something has still to be done."""

    findings: tuple[Finding, ...]
    dry_run: bool

    @property
    def remaining(self) -> tuple[Finding, ...]:
        return self.findings if self.dry_run else tuple(each for each in self.findings if each.done is None)

    def to_json(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "remaining": len(self.remaining),
            "findings": [each.to_json() for each in self.findings],
        }


def reconcile(
    services: Services,
    *,
    dry_run: bool = False,
    only: Sequence[str] = (),
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Reconciliation:
    """Brings every neighbour (or those named) back to the registry. dry_run: nothing is changed anywhere."""
    found: list[Finding] = []
    for name, neighbour in NEIGHBOURS.items():
        if only and name not in only:
            continue

        def advance(done: int, of: int, name: str = name) -> None:
            on_progress(name, done, of)

        found += neighbour(services, dry_run, advance)
    return Reconciliation(tuple(found), dry_run)

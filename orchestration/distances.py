"""What more steps came to: the distances of a task's versions over the steps that were taken for them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from registry import adapters, evaluations, runs
from registry.metrics import numbers
from registry.records import AdapterRecord, EvaluationRecord, RunRecord

if TYPE_CHECKING:
    from orchestration.services import Services

FOLDER = "evaluations"  # among a run's artifacts: pictures, by protocol
PICTURE = "distance-over-steps.png"
Run = tuple[AdapterRecord, RunRecord | None]
Lines = dict[str, list[tuple[float, float]]]


def steps_of(versions: Sequence[Run]) -> dict[str, int]:
    """By adapter, the steps that were taken for it, with those of the versions that it began from.

    versions: oldest first, for what one began from came before it.
    """
    found: dict[str, int] = {}
    for adapter, run in versions:
        if run is not None and "steps" in run.config:
            found[adapter.ref] = found.get(adapter.warm_start or "", 0) + int(run.config["steps"])
    return found


def over_steps(
    versions: Sequence[Run], measured: Mapping[str, Sequence[EvaluationRecord]]
) -> dict[str, Lines]:
    """By protocol and figure, (steps, distance) of the versions; only where several were measured alike."""
    steps = steps_of(versions)
    charts: dict[str, Lines] = {}
    for protocol, found in measured.items():
        lines: Lines = {}
        for each in found:
            for name, value in numbers(each.results).items():
                if each.adapter in steps and name.startswith(("FD", "FID")):
                    lines.setdefault(name, []).append((steps[each.adapter], value))
        several = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
        if several:
            charts[protocol] = several
    return charts


def measured(session: Session, versions: Sequence[AdapterRecord]) -> dict[str, list[EvaluationRecord]]:
    """By protocol, of each version the last evaluation."""
    found: dict[str, list[EvaluationRecord]] = {}
    for each in versions:
        for evaluation in evaluations.latest_of(session, each.node_id):
            found.setdefault(evaluation.protocol_digest, []).append(evaluation)
    return found


def run_of(session: Session, adapter: AdapterRecord) -> RunRecord | None:
    """The run that made it, if any here did."""
    return None if adapter.run_id is None else runs.by_id(session, adapter.run_id)


def show(services: Services, adapter: AdapterRecord, key: str) -> None:
    """Adds a chart of its task's versions to an adapter's run in MLflow, for each of its protocols."""
    from trainers.pictures import chart

    with services.sessions.read() as session:
        versions = adapters.list_all(session, task=adapter.task)
        own = {each.protocol_digest for each in evaluations.latest_of(session, adapter.node_id)}
        found = measured(session, versions)
        made = [(each, run_of(session, each)) for each in versions]
    charts = over_steps(made, {digest: told for digest, told in found.items() if digest in own})
    for digest, lines in charts.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / PICTURE
            path.write_bytes(chart(lines, "steps", "distance", f"{adapter.task}: distance over steps"))
            services.tracking.log_artifact(key, path, f"{FOLDER}/{digest[:12]}")

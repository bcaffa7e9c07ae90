"""What a job costs beside its work: to be claimed, to have processes, to go through Ray, to be settled.

The work is the same everywhere: check the data, train, judge, prove, publish. Once bare, in one warm process
without Ray; then as jobs of a queue: the first starts Ray (cold), the others find it, and a driver, ready
(warm). The overhead is the difference of the two, wall clock.
"""
# ruff: noqa: ARG002 - a listener takes all that it is told

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import migrations
from benchmarks.timing import Figure, Spread, show, write
from orchestration import queue, scheduling
from orchestration.certificates import Certificate
from orchestration.jobs import JobRecord
from orchestration.planner import processors
from orchestration.ray_train import ProgressLine
from orchestration.services import Services
from orchestration.tracking import open_tracking
from orchestration.worker import Worker
from registry.records import AdapterRecord
from tests import learning_world as world

STEPS, QUICK_STEPS = 400, 60
JOBS, QUICK_JOBS = 6, 3
TARGET_SECONDS = 2.0
NAME = "shapes"


@dataclass
class Watch(world.Heard):
    """When each thing was heard, job by job; by the training's own clock where it has one."""

    at: list[dict[str, float]] = field(default_factory=list)
    _job: str = ""

    def stage(self, job: JobRecord, doing: str) -> None:
        if job.id != self._job:
            self._job = job.id
            self.at.append({})
        self.at[-1][doing] = time.time()

    def progress(self, job: JobRecord, line: ProgressLine) -> None:
        self.at[-1].setdefault("first", line.time)
        self.at[-1]["last"] = line.time

    def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None:
        self.at[-1]["published"] = time.time()

    def failed(self, job: JobRecord, error: Exception, state: str) -> None:
        raise SystemExit(f"a job failed: {error}")


def make_space(folder: Path) -> Services:
    migrations.upgrade(f"sqlite:///{folder / 'registry.db'}")
    open_tracking(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", folder / "spool").prepare()
    backbone = world.tiny_backbone(folder / "tiny.safetensors")
    services = world.make_space(folder / "space", folder / "registry.db", folder / "mlflow.db", backbone)
    world.add_dataset(services, world.image_folder(folder / "images", "x", "y"), NAME)
    return services


def bare(services: Services, recipe: dict[str, Any], rounds: int) -> Spread:
    """The whole work of a job in this process, seconds; a first round, not counted, imports what it needs."""
    seconds = []
    for _ in range(rounds + 1):
        job = schedule(services, recipe)
        began = time.perf_counter()
        world.train_here(services, job)  # found finished by the one that judges, proves and publishes
        heard = world.Heard()
        if world.worker_here(services, heard).drain() != 1:
            raise SystemExit(f"the bare job failed: {heard.failures}")
        seconds.append(time.perf_counter() - began)
    return Spread.of(seconds[1:])


def schedule(services: Services, recipe: dict[str, Any]) -> str:
    return scheduling.schedule_again(services.sessions, [NAME], recipe).id


def figures(services: Services, steps: int, jobs: int, settle: float) -> list[Figure]:
    first = world.schedule(services, NAME, steps=steps, batch=32)
    with services.sessions.begin() as session:
        queue.cancel(session, first.id)
    work = bare(services, first.recipe, 2)
    watch = Watch()
    worker = Worker(services, watch)
    began, walls = [], []
    for i in range(jobs):
        if i:
            time.sleep(settle)
        schedule(services, first.recipe)
        began.append(time.time())
        start = time.perf_counter()
        if worker.run_next(stay=True) is None:
            raise SystemExit("nothing was claimed")
        walls.append(time.perf_counter() - start)
    worker.close()
    parts = [
        {
            "before": at["first"] - start,
            "training": at["last"] - at["first"],
            "saving": at["drawing and judging samples"] - at["last"],
            "judging": at["proving that nothing older changed"] - at["drawing and judging samples"],
            "publishing": at["published"] - at["proving that nothing older changed"],
            "ending": start + wall - at["published"],
        }
        for start, wall, at in zip(began, walls, watch.at, strict=True)
    ]

    def of(name: str) -> Spread:
        return Spread.of([part[name] for part in parts[1:]])

    cold, *warm = (wall - work.median for wall in walls)
    return [
        Figure("the bare work", "s", work, None, None),
        Figure("overhead of a job, cold: Ray starts", "s", Spread.of([cold]), None, None),
        Figure("overhead of a job, warm", "s", Spread.of(warm), None, TARGET_SECONDS),
        Figure("a warm job: from the claim to the first report", "s", of("before"), None, None),
        Figure("a warm job: training", "s", of("training"), None, None),
        Figure("a warm job: from the last report to its checkpoint read", "s", of("saving"), None, None),
        Figure("a warm job: drawing and judging 200 samples", "s", of("judging"), None, None),
        Figure("a warm job: proof, golden images, MLflow, publication", "s", of("publishing"), None, None),
        Figure("a warm job: until its worker has settled it", "s", of("ending"), None, None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and jobs, about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds between jobs, to make ready in")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    steps, jobs = (QUICK_STEPS, QUICK_JOBS) if chosen.quick else (STEPS, JOBS)
    versions = {"ray": version("ray"), "torch": version("torch"), "python": platform.python_version()}
    facts: dict[str, Any] = {"steps": steps, "jobs": jobs, "processors": processors(), "versions": versions}
    facts["load"] = os.getloadavg()[0]
    print(f"{jobs} jobs of {steps} steps; {facts['processors']} processor(s); load {facts['load']:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        found = figures(make_space(Path(folder)), steps, jobs, chosen.settle)
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    show(f"{jobs} jobs of {steps} steps", f"medians of {jobs - 1} warm jobs (lowest–highest); {named}", found)
    if chosen.json:
        write(chosen.json, facts, found)


if __name__ == "__main__":
    main()

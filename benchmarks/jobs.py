"""What a job costs beside its training: from the claim to the first step, and from the last to the end.

The same small training, once bare in a warm process, then as jobs of a queue: the first starts Ray (cold),
the others find it, and a driver, ready (warm).
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
from orchestration import additions
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


@dataclass
class Watch(world.Heard):
    """When each thing was heard, job by job; by the training's own clock where it has one."""

    at: list[dict[str, float]] = field(default_factory=list)

    def stage(self, job: JobRecord, doing: str) -> None:
        if doing == "checking the data":
            self.at.append({"begun": time.time()})
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
    world.add_dataset(services, world.image_folder(folder / "images", "x", "y"), "shapes")
    return services


def bare(services: Services, job: JobRecord, rounds: int) -> Spread:
    """The loop alone, from the first report to the last, in this process."""
    import torch

    from orchestration.kinds.train import plan_of
    from trainers.session import TrainingSession

    torch.set_num_threads(processors())
    _, plan = plan_of(services, job)
    seconds = []
    for _ in range(rounds):
        session = TrainingSession(plan)
        session.advance()
        began = time.perf_counter()
        while not session.advance().done:
            pass
        seconds.append(time.perf_counter() - began)
    return Spread.of(seconds)


def figures(services: Services, steps: int, jobs: int, settle: float) -> list[Figure]:
    made = world.schedule(services, "shapes", steps=steps, batch=32)
    loop = bare(services, made, 3)
    watch = Watch()
    worker = Worker(services, watch)
    began = [time.time()]
    for i in range(jobs):
        if i:  # a task has one job at a time; the worker stays, and so does its Ray
            additions.schedule_again(services.sessions, ["shapes"], made.recipe)
            began.append(time.time())
        assert worker.run_next(stay=True) is not None
        time.sleep(settle)
    worker.close()
    parts = [
        {
            "before": at["first"] - start,
            "training": at["last"] - at["first"],
            "judging": at["proving that nothing older changed"] - at["drawing and judging samples"],
            "saving": at["drawing and judging samples"] - at["last"],
            "publishing": at["published"] - at["proving that nothing older changed"],
        }
        for start, at in zip(began, watch.at, strict=True)
    ]
    cold, *warm = parts

    def of(name: str) -> Spread:
        return Spread.of([part[name] for part in warm])

    def overhead(part: dict[str, float]) -> float:
        return part["before"] + part["saving"] + part["training"] - loop.median

    return [
        Figure("the bare loop", "s", loop, None, None),
        Figure("overhead of a job, cold: Ray starts", "s", Spread.of([overhead(cold)]), None, None),
        Figure("overhead of a job, warm", "s", Spread.of([overhead(p) for p in warm]), None, TARGET_SECONDS),
        Figure("of it, from the claim to the first report", "s", of("before"), None, None),
        Figure("of it, from the last report to its checkpoint read", "s", of("saving"), None, None),
        Figure("work after it: drawing and judging 200 samples", "s", of("judging"), None, None),
        Figure("work after it: proof, golden images, MLflow, publication", "s", of("publishing"), None, None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and jobs, about two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds between jobs, to make ready in")
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

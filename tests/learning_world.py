"""The smallest world in which something can be learnt: a 16 × 16 backbone and folders of a few images."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from orchestration import additions, queue, scheduling
from orchestration.certificates import Certificate
from orchestration.datasets import init_data
from orchestration.driver import Order, run
from orchestration.jobs import Claim, JobRecord
from orchestration.kinds.train import end_runs
from orchestration.ray_train import ProgressLine
from orchestration.services import Services
from orchestration.talk import Teller
from orchestration.tracking import open_tracking
from orchestration.worker import Worker
from registry.records import AdapterRecord
from registry.session import connect, sessions
from registry.storage import open_store

RECIPE: dict[str, Any] = {"steps": 8, "batch": 4, "warmup": 2, "mask_ratio": 0.25}
KIND: dict[str, Any] = {"rank": 2}


def image(path: Path, seed: int, size: tuple[int, int] = (16, 16), mode: str = "L") -> Path:
    """A small picture that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    pixels = Image.frombytes("L", (8, 8), source.randbytes(64)).resize(size)
    pixels.convert(mode).save(path)
    return path


def image_folder(folder: Path, *classes: str, each: int = 8, seed: int = 0) -> Path:
    """`class_name/*.png`; without classes the images lie in the folder itself."""
    for label, name in enumerate(classes or (".",)):
        for i in range(each):
            image(folder / name / f"{i}.png", 10_000 * seed + 100 * label + i)
    return folder


def tiny_backbone(path: Path) -> Path:
    """A DiT of one block whose gates are open, so that every layer takes part."""
    import torch

    from affinery.backbones.contract import BackboneSpec
    from affinery.backbones.dit import DiT
    from affinery.backbones.files import save_backbone

    spec = BackboneSpec(
        arch="dit",
        config={"width": 32, "depth": 1, "heads": 2, "patch": 4},
        class_names=("one", "two"),
        image_size=16,
        channels=1,
        defaults={"sampler": {"steps": 4, "guidance": 2.0}},
    )
    generator = torch.Generator().manual_seed(1)
    backbone = DiT(spec).initialise(generator)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if not parameter.abs().sum():
                parameter.normal_(std=0.1, generator=generator)
    save_backbone(backbone, path)
    return path


@dataclass
class Heard:
    """A listener that keeps what it heard."""

    steps: list[int] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    published_refs: list[str] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    failures: list[tuple[JobRecord, Exception, str]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    results: list[tuple[JobRecord, dict[str, Any]]] = field(default_factory=list)

    def started(self, job: JobRecord, resumed_from: int) -> None:
        self.resumed.append(resumed_from)

    def progress(self, job: JobRecord, line: ProgressLine) -> None:
        self.steps.append(line.step)

    def stage(self, job: JobRecord, doing: str) -> None:
        self.stages.append(doing)

    def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None:
        self.published_refs += [record.ref for record in adapters]
        self.certificates.append(certificate)

    def done(self, job: JobRecord, result: dict[str, Any]) -> None:
        self.results.append((job, result))

    def failed(self, job: JobRecord, error: Exception, state: str) -> None:
        self.failures.append((job, error, state))


class DriverHere:
    """An attempt in this process, done before its worker looks at it."""

    def __init__(self, order: Order) -> None:
        self.told: list[dict[str, Any]] = []
        services = order.places.open()
        with services.sessions.read() as session:
            held = Claim(
                queue.get(session, order.job), order.owner, order.fence, order.attempt, order.failures
            )
        run(services, held, order.share, Teller(self._hear))
        services.sessions.engine.dispose()

    def _hear(self, entry: dict[str, Any]) -> None:
        self.told.append(json.loads(json.dumps(entry)))

    def lines(self) -> list[dict[str, Any]]:
        told, self.told = self.told, []
        return told

    def ended(self) -> bool:
        return True

    def ask(self, request: str) -> None:
        raise AssertionError("it has ended already")

    def signal(self, number: int) -> None:
        return

    def last_words(self) -> tuple[str, str]:
        return "ended", ""


class DriversHere:
    """Drivers without processes, for tests that put something in the way of one."""

    def start(self, order: Order) -> DriverHere:
        return DriverHere(order)

    def keep_ready(self, ray: str | None) -> None:
        return

    def end_runs(self, order: Order, status: str) -> None:
        services = order.places.open()
        end_runs(services, order.job, status)
        services.sessions.engine.dispose()

    def close(self) -> None:
        return


def worker_here(services: Services, heard: Heard, owner: str = "tests") -> Worker:
    """A worker that does its jobs in this process. Where it has to train, the services name a Ray."""
    told = services if services.ray_address else replace(services, ray_address="none is needed")
    return Worker(told, heard, owner, drivers=DriversHere())


def open_space(folder: Path) -> Services:
    """What a worker works with in a folder that `make_space` made."""
    engine = connect(f"sqlite:///{folder / 'registry.db'}")
    tracking = open_tracking(
        f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", spool=folder / "spool"
    )
    url = str(folder / "blobs")
    return Services(
        sessions(engine), open_store(url), tracking, folder / "data", folder / "runs", store_url=url
    )


def make_space(folder: Path, registry: Path, mlflow: Path, backbone: Path) -> Services:
    """A whole workspace with a backbone and no task. registry, mlflow: empty databases to copy."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(registry, folder / "registry.db")
    shutil.copy(mlflow, folder / "mlflow.db")
    init_data(folder / "data")
    services = open_space(folder)
    additions.add_backbone(services.sessions, services.store, backbone, "tiny")
    return services


def add_dataset(services: Services, folder: Path, name: str) -> None:
    additions.add_dataset(
        services.sessions, services.data, folder, name=name, licence="CC0-1.0", source="made for a test"
    )


def schedule(
    services: Services,
    *names: str,
    after: tuple[str, ...] = (),
    condition: dict[str, Any] | None = None,
    **recipe: Any,
) -> JobRecord:
    """Tasks that learn the datasets of their own names, together where they are several."""
    return scheduling.schedule(
        services.sessions,
        names,
        names,
        backbone="tiny",
        kind="affiner",
        config=KIND,
        recipe=RECIPE | recipe,
        after=after,
        conditions=[condition],
    )


def job(services: Services, job_id: str) -> JobRecord:
    with services.sessions.read() as session:
        return queue.get(session, job_id)


def train_here(services: Services, job_id: str) -> Path:
    """Leaves a finished checkpoint of a job, as an attempt that dies before it publishes. → its folder"""
    import torch

    from orchestration.kinds.train import plan_of
    from orchestration.planner import processors
    from trainers.plan import TrainingPlan
    from trainers.session import TrainingSession

    _, made = plan_of(services, job(services, job_id))
    plan = TrainingPlan.from_json(made.to_json())  # as a Ray worker is told it
    folder = services.runs / job_id / "attempt-1" / "ray" / "checkpoint"
    threads = torch.get_num_threads()
    torch.set_num_threads(processors())  # as a Ray worker does
    try:
        training = TrainingSession(plan)
        while not training.advance().done:
            continue
        training.save(folder)
    finally:
        torch.set_num_threads(threads)
    return folder

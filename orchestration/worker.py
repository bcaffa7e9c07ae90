"""The worker: takes jobs from the queue, trains them through Ray, proves and publishes what was learnt."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery.errors import AffineryError, UserError
from orchestration import datasets, publishing, queue, ray_train
from orchestration.errors import LeaseLost, OlderTaskDisturbed
from orchestration.jobs import LIVE, Claim, JobRecord
from orchestration.services import Listener, Services
from orchestration.tracking import Point
from registry import backbones, tasks
from registry import datasets as recorded
from registry.columns import utc_now
from registry.errors import BlobDamaged, BlobMissing, StaleFence
from registry.records import TaskRecord

if TYPE_CHECKING:
    from affinery.adapters.files import Adapter
    from affinery.composed import ComposedModel
    from trainers.evaluation import Judgement
    from trainers.plan import TrainingPlan

log = logging.getLogger(__name__)

IDLE_SECONDS = 2.0
EXPERIMENT = "affinery"
KEYS = "mlflow.json"
LASTING = (UserError, OlderTaskDisturbed, BlobDamaged, BlobMissing)
"""Errors that the same job would meet again."""


def own_name() -> str:
    """This process, as a worker's name: host, number and start, so that a reused number is another name."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where it is gone, or dead and not yet buried."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if facts[0] in "ZX" else facts[19]


def _is_dead(owner: str) -> bool:
    """Whether a worker of this machine is known to be gone; of others, only their lease tells."""
    host, _, rest = owner.partition(":")
    pid, _, started = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit() or not Path("/proc/self/stat").exists():
        return False
    return _started(int(pid)) != started


class Heart(threading.Thread):
    """Renews a claim's lease while the worker is busy, and remembers when that was refused."""

    def __init__(
        self, services: Services, held: Claim, every_seconds: float = queue.LEASE_SECONDS / 4
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.services, self.held, self.every = services, held, every_seconds
        self.progress: dict[str, Any] | None = None
        self.lost: Exception | None = None
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self.every):
            try:
                with self.services.sessions.begin() as session:
                    queue.heartbeat(session, self.held, self.progress)
            except LeaseLost as error:
                self.lost = error
                return
            except Exception as error:  # noqa: BLE001 - a busy or absent database: the lease outlasts three beats
                log.warning("A heartbeat of job %s was missed: %s", self.held.job.id, error)

    def check(self) -> None:
        """Raises LeaseLost once the job is no longer ours."""
        if self.lost is not None:
            raise self.lost

    @contextmanager
    def beating(self) -> Iterator[Heart]:
        self.start()
        try:
            yield self
        finally:
            self._over.set()
            self.join()


class Worker:
    """One worker. It runs jobs one at a time; several may run on one registry."""

    def __init__(self, services: Services, listener: Listener, owner: str | None = None) -> None:
        self.services, self.listener = services, listener
        self.owner = owner or own_name()

    def drain(self) -> int:
        """Runs jobs until none is left to run now or, after a retry's delay, soon. → how many were done"""
        done = 0
        while True:
            job = self.run_next()
            if job is not None:
                done += job.state == "done"
                continue
            if not self._worth_waiting():
                return done
            time.sleep(IDLE_SECONDS)

    def _worth_waiting(self) -> bool:
        """Whether a queued job becomes due by itself: what it needs is done, only its time has not come."""
        with self.services.sessions.read() as session:
            unfinished = queue.unfinished(session)
            states = {job.id: job.state for job in queue.list_all(session)}
        return any(
            job.state == "queued" and all(states[needed] == "done" for needed in job.needs)
            for job in unfinished
        )

    def serve(self) -> None:
        """Runs jobs as they come, for ever."""
        while True:
            if self.run_next() is None:
                time.sleep(IDLE_SECONDS)

    def run_next(self) -> JobRecord | None:
        """Runs the next job, if there is one. → the job as it stands then"""
        held = self._claim()
        if held is None:
            return None
        heart = Heart(self.services, held)
        try:
            with heart.beating():
                self._run(held, heart)
        except (LeaseLost, StaleFence) as error:
            self._lost(held, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is written down as the job's reason
            self._failed(held, error)
        except BaseException:  # Ctrl-C, SystemExit: the job goes back, its checkpoints stay
            self._give_back(held)
            raise
        with self.services.sessions.read() as session:
            return queue.get(session, held.job.id)

    def _claim(self) -> Claim | None:
        with self.services.sessions.begin() as session:
            owners = {job.owner for job in queue.list_all(session, ["running"]) if job.owner}
            dead = [owner for owner in owners if owner != self.owner and _is_dead(owner)]
            queue.owners_gone(session, dead)
            hopeless = queue.give_up(session)
            held = queue.claim(session, self.owner)
        for job, reason in hopeless:
            self._end_runs(job, "FAILED")
            self.listener.failed(job, reason, job.state)
        return held

    def _give_back(self, held: Claim) -> None:
        try:
            with self.services.sessions.begin() as session:
                queue.release(session, held)
        except AffineryError as error:  # the interruption itself must go on; the lease runs out by itself
            log.warning("Job %s could not be given back: %s", held.job.id, error)

    def _lost(self, held: Claim, error: Exception) -> None:
        """The job is another's by now, was cancelled (its runs end too), or was done before the error."""
        with self.services.sessions.read() as session:
            job = queue.get(session, held.job.id)
        if job.state == "cancelled":
            self._end_runs(job, "KILLED")
        self.listener.failed(job, error, "lost" if job.state in LIVE else job.state)

    def _failed(self, held: Claim, error: Exception) -> None:
        lasting = isinstance(error, LASTING) or getattr(error, "lasting", False)
        message = str(error) or type(error).__name__
        try:
            with self.services.sessions.begin() as session:
                state = queue.fail(session, held, message, may_heal=not lasting)
        except LeaseLost:
            self._lost(held, error)
            return
        if state == "failed":
            self._end_runs(held.job, "FAILED")
        self.listener.failed(held.job, error, state)

    def _end_runs(self, job: JobRecord, status: str) -> None:
        """Ends the MLflow runs of a job that will have no result."""
        for key in _keys(self.services.runs / job.id).values():
            self.services.tracking.finish(key, status)

    def _run(self, held: Claim, heart: Heart) -> None:
        job, services = held.job, self.services
        started_at = utc_now()
        folder = services.runs / job.id
        self.listener.stage(job, "checking the data")
        learners, plan = self._plan(job)
        keys = self._open_runs(job, folder, learners, plan)
        heart.check()
        told = publishing.points(folder)
        wanted = ray_train.resources(services.ray_address)
        self.listener.started(job, _furthest(folder))

        def on_progress(line: ray_train.ProgressLine) -> None:
            heart.check()
            heart.progress = {"step": line.step, "of": line.steps, "losses": line.losses}
            for name, loss in line.losses.items():
                if line.step not in told.get(name, {}):
                    services.tracking.log_metrics(keys[name], [_point(line.step, loss, line.time)])
            self.listener.progress(job, line)

        checkpoint = ray_train.train(plan, folder, held.fence, wanted, on_progress, heart.check)
        heart.check()
        stage = publishing.stage_of(services, learners)
        self.listener.stage(job, "drawing and judging samples")
        fresh = _read_adapters(checkpoint, plan)
        model = publishing.compose(services, stage, fresh)
        judged = {task.name: self._judge(model, plan, i) for i, task in enumerate(learners)}
        results = publishing.read_results(folder, checkpoint, learners, judged, fresh, keys)
        self._record_runs(folder, results)
        self.listener.stage(job, "proving that nothing older changed")
        heart.check()
        published, certificate = publishing.publish(
            services, held, plan, stage, model, results, EXPERIMENT, started_at
        )
        refs = {record.task: record.ref for record in published}
        for learnt in results:
            services.tracking.set_tags(learnt.key, {"affinery.adapter": refs[learnt.task.name]})
            services.tracking.finish(learnt.key)
        self.listener.published(job, published, certificate)

    def _plan(self, job: JobRecord) -> tuple[list[TaskRecord], TrainingPlan]:
        """The plan of a job, its data checked against what was pinned. Raises DatasetChanged."""
        from trainers.plan import PlannedTask, TrainingPlan
        from trainers.recipe import Recipe

        services = self.services
        with services.sessions.read() as session:
            learners = [tasks.get(session, name) for name in job.tasks]
            sources = [recorded.by_id(session, task.dataset_id) for task in learners]
            backbone = backbones.by_id(session, learners[0].backbone_id)
        services.store.verify(backbone.blob_digest)
        planned = tuple(
            PlannedTask(
                task.name,
                task.kind,
                task.config,
                str(datasets.ensure(services.data, source.dvc_path, source.digest)),
                source.digest,
                task.block,
                task.classes,
                task.condition,
                task.image_size,
            )
            for task, source in zip(learners, sources, strict=True)
        )
        recipe = Recipe.from_dict(job.recipe)
        save_every = max(10, recipe.steps // 10)
        plan = TrainingPlan(
            str(services.store.path(backbone.blob_digest)),
            backbone.digest,
            planned,
            recipe,
            report_every=max(1, min(10, recipe.steps // 20)),
            save_every=save_every,
            cache=str(services.cache),
        )
        # A checkpoint is saved at a report, so the one distance must be a multiple of the other.
        return learners, replace(plan, save_every=-(-save_every // plan.report_every) * plan.report_every)

    def _open_runs(
        self, job: JobRecord, folder: Path, learners: Sequence[TaskRecord], plan: TrainingPlan
    ) -> dict[str, str]:
        """One MLflow run a task, the same ones for every attempt of a job."""
        keys = _keys(folder)
        if keys:
            return keys
        for task, planned in zip(learners, plan.tasks, strict=True):
            params = plan.recipe.to_dict() | {
                f"{task.kind}.{name}": value for name, value in task.config.items()
            }
            params |= {
                "task": task.name,
                "kind": task.kind,
                "strategy": job.strategy,
                "dataset": task.dataset,
                "backbone": task.backbone,
            }
            params |= {f"condition.{name}": value for name, value in (task.condition or {}).items()}
            params |= {} if task.image_size is None else {"image_size": task.image_size}
            tags = {
                "affinery.job": job.id,
                "affinery.task": task.name,
                "affinery.backbone": plan.fingerprint,
                "affinery.dataset": planned.dataset_digest,
            }
            keys[task.name] = self.services.tracking.start_run(EXPERIMENT, task.name, params, tags)
        publishing.remember(folder / KEYS, keys)
        return keys

    def _judge(self, model: ComposedModel, plan: TrainingPlan, index: int) -> Judgement:
        from affinery.diffusion.sampling import default_settings
        from trainers.evaluation import judge
        from trainers.session import load_task

        task = plan.tasks[index]
        split = load_task(task, model.backbone, plan.cache)
        return judge(model, task.name, split, default_settings(model), publishing.JUDGED_SAMPLES)

    def _record_runs(self, folder: Path, results: Sequence[publishing.Learnt]) -> None:
        """Pictures, figures and the adapter itself, to MLflow; the pictures stay beside the run too."""
        import torch

        from trainers.pictures import loss_curve, png, tile

        tracking = self.services.tracking
        for i, learnt in enumerate(results):
            name = learnt.task.name
            columns = min(len(learnt.task.classes), 20) if len(learnt.task.classes) > 1 else 10
            shown = learnt.judgement.images[: columns * 8]
            pictures = folder / f"pictures-{i}"
            pictures.mkdir(parents=True, exist_ok=True)
            (pictures / "samples.png").write_bytes(png(tile(shown, columns)))
            told = [draw.condition for draw in learnt.judgement.draws[: columns * 8]]
            names = ["samples.png", "loss.png"]
            if conditions := [condition for condition in told if condition is not None]:
                (pictures / "conditions.png").write_bytes(png(tile(torch.stack(conditions), columns)))
                names.append("conditions.png")
            (pictures / "loss.png").write_bytes(loss_curve({name: learnt.curve}))
            # Once more and whole: what a worker that was killed had not passed on is in no other place.
            whole = publishing.points(folder).get(name, {})
            tracking.log_metrics(learnt.key, [_point(step, *told) for step, told in sorted(whole.items())])
            now = int(time.time() * 1000)
            last = learnt.curve[-1][0] if learnt.curve else 0
            if learnt.judgement.recognition is not None:
                seen = learnt.judgement.recognition
                tracking.log_metrics(
                    learnt.key,
                    [
                        ("recognition", seen.share, last, now),
                        ("real_accuracy", seen.real_accuracy, last, now),
                    ],
                )
            for picture in names:
                tracking.log_artifact(learnt.key, pictures / picture, "pictures")
            tracking.log_artifact(learnt.key, learnt.file, "adapter")


def _point(step: int, loss: float, at: float) -> Point:
    return ("loss", loss, step, int(at * 1000))


def _keys(folder: Path) -> dict[str, str]:
    """By task, the keys of a job's MLflow runs; none where it has not begun."""
    path = folder / KEYS
    known: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
    return known


def _furthest(folder: Path) -> int:
    """The step from which a job goes on: that of its newest whole checkpoint."""
    from trainers.checkpoints import RECORD, checkpoints_in

    found = checkpoints_in(folder)
    return int(json.loads((found[0] / RECORD).read_bytes())["step"]) if found else 0


def _read_adapters(checkpoint: Path, plan: TrainingPlan) -> list[Adapter]:
    from affinery.adapters.files import read_adapter
    from trainers.session import adapter_name

    return [read_adapter(checkpoint / adapter_name(i)) for i in range(len(plan.tasks))]

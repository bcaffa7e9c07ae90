"""One training through Ray Train, from the driver's side and the worker's.

The folder of an attempt is the channel between the two, so that nothing is lost when either dies:

    plan.json        what to train
    progress.jsonl   one line a report
    stop             written by the driver: end at the next report
    <ray name>/      Ray's own storage, with our checkpoints in it

A later attempt has a Ray name of its own and starts from the newest whole checkpoint of any earlier one, so a
torn snapshot of Ray's, or a zombie that still writes, is never read.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from affinery.errors import AffineryError
from orchestration.errors import RayUnavailable, TrainingFailed, TrainingStopped

if TYPE_CHECKING:
    from trainers.plan import TrainingPlan

PROGRESS, STOP, PLAN = "progress.jsonl", "stop", "plan.json"
log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
STOP_SECONDS = 45
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


@dataclass(frozen=True)
class ProgressLine:
    """One report of a training."""

    step: int
    steps: int
    losses: dict[str, float]
    time: float


@dataclass(frozen=True)
class Resources:
    """What a training may use. address: of a Ray cluster; without one, Ray runs here, in this session."""

    cpus: int
    gpus: int = 0
    address: str | None = None


def resources(address: str | None = None) -> Resources:
    """All of this machine's processors, and one GPU where there is one; or what the cluster has."""
    from torch.cuda import device_count

    return Resources(max(1, len(os.sched_getaffinity(0))), min(1, device_count()), address)


def start_ray(wanted: Resources) -> None:
    """Connects to Ray, or starts it here; once a process. Raises RayUnavailable."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Local Ray listens on loopback for this session only; a cluster's token is the user's to set.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    if ray.is_initialized():
        return
    try:
        if wanted.address:
            ray.init(address=wanted.address, logging_level="ERROR", log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=wanted.cpus,
                num_gpus=wanted.gpus,
                include_dashboard=False,
                logging_level="ERROR",
                log_to_driver=False,
            )
    except Exception as error:
        raise RayUnavailable(wanted.address or "this machine", str(error)) from error


def stop_ray() -> None:
    """Disconnects; a Ray that was started here ends."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def train(
    plan: TrainingPlan,
    folder: Path,
    attempt: int,
    wanted: Resources,
    on_progress: Callable[[ProgressLine], None],
) -> Path:
    """Trains to the end and returns the folder of the finished checkpoint, with the adapters in it.

    folder: the job's own, the same for every attempt. on_progress runs in this thread; what it raises ends
    the training at its next report, and is raised here. Raises TrainingFailed, or the worker's own
    AffineryError.
    """
    start_ray(wanted)
    channel = folder / f"attempt-{attempt}"
    channel.mkdir(parents=True, exist_ok=True)
    (channel / PLAN).write_text(plan.to_json(), encoding="utf-8")
    (channel / STOP).unlink(missing_ok=True)
    fit = _Fit(plan, folder, channel, wanted)
    fit.start()
    position = 0
    try:
        while fit.is_alive():
            fit.join(POLL_SECONDS)
            position = _tell(channel / PROGRESS, position, on_progress)
        _tell(channel / PROGRESS, position, on_progress)
    except BaseException:  # also Ctrl-C: the workers are asked to stop, and their checkpoints stay
        (channel / STOP).touch()
        fit.join(STOP_SECONDS)
        raise
    return fit.finished()


def _tell(path: Path, position: int, on_progress: Callable[[ProgressLine], None]) -> int:
    """Hands on the whole lines that were appended since `position`. → the new position"""
    if not path.exists():
        return position
    with path.open("rb") as file:
        file.seek(position)
        fresh = file.read()
    whole = fresh[: fresh.rfind(b"\n") + 1]
    for line in whole.splitlines():
        on_progress(ProgressLine(**json.loads(line)))
    return position + len(whole)


class _Fit(threading.Thread):
    """`TorchTrainer.fit` beside the main thread, which keeps Ctrl-C and the heartbeat to itself."""

    def __init__(self, plan: TrainingPlan, folder: Path, channel: Path, wanted: Resources) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.plan, self.folder, self.channel, self.wanted = plan, folder, channel, wanted
        self.checkpoint: Path | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.checkpoint = self._fit()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which decides
            self.error = error

    def _fit(self) -> Path:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "plan": self.plan.to_json(),
                "folder": str(self.folder),
                "threads": self.wanted.cpus,
            },
            scaling_config=ScalingConfig(
                num_workers=1,
                use_gpu=self.wanted.gpus > 0,
                resources_per_worker={"CPU": self.wanted.cpus, "GPU": self.wanted.gpus},
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(self.channel),
                callbacks=[_reporter(self.channel)],
                failure_config=FailureConfig(max_failures=1),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        result = trainer.fit()
        if result.checkpoint is None:
            raise TrainingFailed("Ray Train ended without a checkpoint")
        return Path(result.checkpoint.path)

    def finished(self) -> Path:
        """The finished checkpoint, or the error that the worker raised."""
        if self.error is None and self.checkpoint is not None:
            return self.checkpoint
        assert self.error is not None
        raise _cause(self.error) from self.error


def _cause(error: BaseException) -> BaseException:
    """The worker's own error where it is one of ours; else what Ray says, in one line."""
    for failure in getattr(error, "worker_failures", {}).values():
        for inner in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(inner, AffineryError):
                return inner
    text = str(error).strip().splitlines() or [type(error).__name__]
    return TrainingFailed(text[-1])


def _reporter(channel: Path) -> Any:
    """A callback in Ray's controller: writes each report down, and ends the training when asked to."""
    from ray.train import UserCallback

    class Reporter(UserCallback):
        def after_report(self, *, metrics: list[dict[str, Any]], **_: Any) -> None:
            with (channel / PROGRESS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics[0]) + "\n")
            if (channel / STOP).exists():
                raise TrainingStopped(str(channel))

    return Reporter()


def train_worker(config: dict[str, Any]) -> None:
    """What runs in a Ray worker: train, report, save, until done."""
    import time

    import ray.train
    import torch

    from trainers.plan import TrainingPlan
    from trainers.session import TrainingSession

    torch.set_num_threads(int(config["threads"]))
    plan = TrainingPlan.from_json(config["plan"])
    session = TrainingSession(plan)
    resume(session, Path(config["folder"]))
    while True:
        progress = session.advance()
        report = {
            "step": progress.step,
            "steps": progress.steps,
            "losses": progress.losses,
            "time": time.time(),
        }
        if progress.done or progress.step % plan.save_every == 0:
            with TemporaryDirectory() as folder:
                session.save(Path(folder))
                ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))
        else:
            ray.train.report(report)
        if progress.done:
            return


def resume(session: Any, folder: Path) -> int:
    """Goes on from the newest whole checkpoint of any attempt; torn ones are passed over. → the step"""
    from trainers.checkpoints import checkpoints_in
    from trainers.errors import CheckpointUnreadable

    for checkpoint in checkpoints_in(folder):
        try:
            session.restore(checkpoint)
        except CheckpointUnreadable as error:
            log.warning("%s", error)
        else:
            break
    return int(session.step)

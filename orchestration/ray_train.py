"""One training through Ray Train, from the driver's side and the worker's.

The folder of an attempt is the channel between the two, so that nothing is lost when either dies:

    plan.json        what to train
    progress.jsonl   one line a stretch of steps, several to a report
    stop             written by the driver: save a checkpoint after this stretch of steps, and end
    <ray name>/      Ray's own storage, with our checkpoints in it

A later attempt has a Ray name of its own and starts from the newest whole checkpoint of any earlier one, so a
torn snapshot of Ray's, or a zombie that still writes, is never read.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from affinery.errors import AffineryError
from orchestration import failpoints, local_ray, planner, ray_processes
from orchestration.errors import DiskFull, RayAddressInvalid, RayUnavailable, Requested, TrainingFailed
from orchestration.jobs import Capacity
from orchestration.threads import SPINNING

if TYPE_CHECKING:
    from orchestration.cluster import Submitted
    from orchestration.planner import Share
    from trainers.plan import TrainingPlan

PROGRESS, STOP, PLAN = "progress.jsonl", "stop", "plan.json"
REFUSED, LINES = "refused", "lines"
log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
REPORT_SECONDS = 1.0
"""Ray takes one report a poll, and the worker waits with the next: a fast training tells several at once."""
STOP_SECONDS = 45
REACH_SECONDS = 10.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Ray Train sets it for its controller alone; its processes are shared out by their environment, and so
    # none that was made ready would fit.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    **SPINNING,
}


@dataclass(frozen=True)
class ProgressLine:
    """One report of a training. idle: the share of the time since the last one that went by without data."""

    step: int
    steps: int
    losses: dict[str, float]
    time: float
    idle: float = 0.0


def prepare_environment(*, local: bool) -> None:
    """What Ray reads from the environment, where the user did not set it. local: Ray is ours alone."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if local:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine
    # Ray here listens on loopback, for this session only; a cluster's token is the user's to set.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")


_NOT_LET_IN = (
    "Something answers there: is it a Ray of this version, and the token (RAY_AUTH_TOKEN_PATH) its own?"
)


def connect_ray(address: str, *, ahead: bool = False) -> None:
    """Connects this process to Ray; once. Raises RayUnavailable.

    address: of a cluster, or of the file in which that of a worker's own Ray stands. That starts the
    processes which a training of this one will need; ahead: they are not needed yet.
    """
    own = Path(address).parent if is_own(address) else None
    if own is not None:
        address = local_ray.address_in(Path(address))
        prepare_environment(local=True)
    else:
        _reach(address)
    prepare_environment(local=False)
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:
        raise RayUnavailable(address, f"{error}. {_NOT_LET_IN}") from error
    if own is not None:
        _make_ready(own, ahead)


def _make_ready(folder: Path, ahead: bool) -> None:
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    watchers = ray_processes.WATCHERS if ahead else 0
    try:
        ray_processes.make_ready(folder, get_env_vars_to_propagate(), watchers)
    except Exception as error:  # noqa: BLE001 - Ray starts them when they are needed
        log.warning("Nothing was made ready: %s", error)


def check_address(address: str | None) -> None:
    """Raises RayAddressInvalid for an address at which no driver can stand."""
    if address is not None and "://" in address and not address.startswith(("http://", "https://")):
        raise RayAddressInvalid(address)


def is_own(address: str | None) -> bool:
    """Whether this is the file in which the address of a worker's own Ray stands."""
    return address is not None and address.startswith(os.sep)


def _reach(address: str) -> None:
    """Raises RayUnavailable where nobody listens; Ray itself would look for two minutes."""
    check_address(address)
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # a word of Ray's, as `auto` is
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise RayUnavailable(address, f"nobody answers there ({error.strerror or error})") from error


def machines() -> list[Capacity]:
    """What each machine of the connected Ray has."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Capacity(has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in alive]


def warm_up(address: str | None, enough: Callable[[], bool]) -> None:
    """Makes ready what every training needs, while there is nothing else to do: imports, here and in Ray.

    A Ray of ours starts the processes of the training; they import side by side with this one. It ends early
    when that is enough. What fails here will be told when it is needed.
    """
    prepare_environment(local=is_own(address))
    try:
        if address is not None and is_own(address):
            connect_ray(address, ahead=True)
        for name in ray_processes.FOR_TRAINING + ray_processes.AFTER_TRAINING:
            if enough():
                return
            import_module(name)
    except Exception as error:  # noqa: BLE001 - the training itself says what is wrong
        log.warning("Nothing was made ready: %s", error)


def train(
    plan: TrainingPlan,
    folder: Path,
    attempt: int,
    share: Share,
    on_progress: Callable[[ProgressLine], None],
    on_wait: Callable[[], None] = lambda: None,
) -> Path:
    """Trains to the end and returns the folder of the finished checkpoint, with the adapters in it.

    folder: the job's own, the same for every attempt; what is finished in it is not trained again.
    on_progress and on_wait (several times a second) run in this thread; what they raise ends the training
    with a checkpoint after its present stretch of steps, and is raised here. Raises TrainingFailed, or the
    worker's own AffineryError.
    """
    done = finished_checkpoint(folder, plan)
    if done is not None:
        return done
    channel = folder / f"attempt-{attempt}"
    channel.mkdir(parents=True, exist_ok=True)
    (channel / PLAN).write_text(plan.to_json(), encoding="utf-8")
    (channel / STOP).unlink(missing_ok=True)
    fit = _begun(plan, folder, channel, share)
    position = 0
    try:
        while fit.is_alive():
            fit.join(POLL_SECONDS)
            on_wait()
            position, over = _tell(channel / PROGRESS, position, on_progress)
            # It is saved before it is told; Ray takes its processes apart while we go on.
            if over and (done := finished_checkpoint(folder, plan)) is not None:
                return done
        _tell(channel / PROGRESS, position, on_progress)
    except BaseException as error:  # also Ctrl-C: what was trained is saved first
        nothing_to_save = position == 0 or (isinstance(error, Requested) and error.args[0] == "cancel")
        if not nothing_to_save:
            (channel / STOP).touch()
            fit.join(STOP_SECONDS)
        fit.end()
        raise
    return fit.finished()


def _begun(plan: TrainingPlan, folder: Path, channel: Path, share: Share) -> Fit | Submitted:
    """The training, begun: from here where this machine is a node of Ray's, else as a job of the cluster."""
    from orchestration.cluster import Submitted, is_remote

    assert share.ray is not None
    fit: Fit | Submitted
    if is_remote(share.ray):
        fit = Submitted(share.ray, channel, share)
    else:
        connect_ray(share.ray)
        fit = Fit(plan, folder, channel, planner.fitting(share, machines(), folder.name[:8]))
    fit.start()
    return fit


def finished_checkpoint(folder: Path, plan: TrainingPlan) -> Path | None:
    """The checkpoint of an earlier attempt that trained to the end, with every adapter whole in it."""
    from affinery.adapters.files import read_adapter
    from affinery.errors import AdapterFileInvalid
    from trainers.checkpoints import RECORD, checkpoints_in
    from trainers.session import adapter_name

    for checkpoint in checkpoints_in(folder):
        record = json.loads((checkpoint / RECORD).read_bytes())
        if not record["done"]:
            return None
        try:
            found = [read_adapter(checkpoint / adapter_name(i)).meta for i in range(len(plan.tasks))]
        except AdapterFileInvalid as error:
            log.warning("%s It is written again.", error)
            continue
        planned = [(task.name, task.block, plan.fingerprint) for task in plan.tasks]
        if record["recipe"] == plan.recipe.to_dict() and planned == [
            (meta.task, meta.block, meta.backbone) for meta in found
        ]:
            return checkpoint
    return None


def _tell(path: Path, position: int, on_progress: Callable[[ProgressLine], None]) -> tuple[int, bool]:
    """Hands on the whole lines that were appended since `position`. → the new position; whether it is done"""
    if not path.exists():
        return position, False
    with path.open("rb") as file:
        file.seek(position)
        fresh = file.read()
    whole = fresh[: fresh.rfind(b"\n") + 1]
    over = False
    for text in whole.splitlines():
        line = ProgressLine(**json.loads(text))
        on_progress(line)
        over = line.step == line.steps
    return position + len(whole), over


class Fit(threading.Thread):
    """`TorchTrainer.fit` beside the main thread, which keeps Ctrl-C and the heartbeat to itself."""

    def __init__(self, plan: TrainingPlan, folder: Path, channel: Path, share: Share) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.plan, self.folder, self.channel, self.share = plan, folder, channel, share
        self.checkpoint: Path | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.checkpoint = self._fit()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which decides
            self.error = error

    def _fit(self) -> Path:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

        from orchestration.ray_trainer import LocalTrainer, Trainer

        kind = LocalTrainer if is_own(self.share.ray) else Trainer
        trainer = kind(
            train_worker,
            train_loop_config={
                "plan": self.plan.to_json(),
                "folder": str(self.folder),
                "channel": str(self.channel),
                "threads": max(1, int(self.share.cpus / self.share.workers)),
            },
            scaling_config=ScalingConfig(
                num_workers=self.share.workers,
                use_gpu=self.share.gpus > 0,
                resources_per_worker={
                    "CPU": self.share.cpus / self.share.workers,
                    "GPU": self.share.gpus / self.share.workers,
                },
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(self.channel),
                callbacks=[_reporter(self.channel)],
                worker_runtime_env={"env_vars": ray_processes.training()},
                failure_config=FailureConfig(max_failures=1),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        result = trainer.fit()
        if result.checkpoint is None:
            raise TrainingFailed("Ray Train ended without a checkpoint")
        return Path(result.checkpoint.path)

    def end(self) -> None:
        """It ends with this process."""

    def finished(self) -> Path:
        """The finished checkpoint, or the error that the worker raised."""
        if self.error is None and self.checkpoint is not None:
            return self.checkpoint
        assert self.error is not None
        raise _cause(self.error) from self.error


def _cause(error: BaseException) -> BaseException:
    """The worker's own error where it is one of ours; else what Ray says, in one line."""
    if isinstance(error, AffineryError):
        return error
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for failure in failures:
        raised = getattr(failure, "_base_exc", failure)  # Ray keeps it beside its own words
        if isinstance(raised, AffineryError):
            return raised
    first = next((failure for failure in failures if failure is not None), error)
    text = str(first).strip().splitlines() or [type(first).__name__]
    return TrainingFailed(text[-1])


def _reporter(channel: Path) -> Any:
    """A callback in Ray's controller: writes each report down, and ends what its worker refuses to train."""
    from ray.train import UserCallback

    class Reporter(UserCallback):
        def after_report(self, *, metrics: list[dict[str, Any]], **_: Any) -> None:
            refusal = metrics[0].get(REFUSED)
            if isinstance(refusal, AffineryError):
                raise refusal
            with (channel / PROGRESS).open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in metrics[0][LINES]))

    return Reporter()


def train_worker(config: dict[str, Any]) -> None:
    """What runs in a Ray worker: train, report, save, until done."""
    import ray.train

    try:
        _train_worker(config)
    except AffineryError as error:
        # Raised here, Ray would try the same once more; reported, it is raised in the controller, and ends.
        ray.train.report({REFUSED: error})
    except OSError as error:
        if not DiskFull.is_behind(error):
            raise
        # After a report that could not store its checkpoint, another one would wait for ever.
        raise DiskFull(config["folder"]) from error


def _train_worker(config: dict[str, Any]) -> None:
    import time

    import ray.train
    import torch

    from trainers.plan import TrainingPlan
    from trainers.ranks import ranks as current_ranks
    from trainers.session import TrainingSession

    torch.set_num_threads(int(config["threads"]))
    plan = TrainingPlan.from_json(config["plan"])
    ranks = current_ranks()
    session = TrainingSession(plan, ranks)
    resume(session, Path(config["folder"]))
    stop = Path(config["channel"]) / STOP
    lines: list[dict[str, Any]] = []
    told = 0.0
    while True:
        # Done from the start where the last attempt ended between its last step and its last file.
        fresh = not session.done
        progress = session.advance()
        losses = progress.losses if fresh else {}
        failpoints.reach("stepping")
        at = {"step": progress.step, "steps": progress.steps, "time": time.time(), "idle": progress.idle}
        lines.append(at | {"losses": losses})
        stopping, due = ranks.as_first(stop.exists(), time.monotonic() - told >= REPORT_SECONDS)
        if progress.done or stopping or progress.step % plan.save_every == 0:
            with TemporaryDirectory() as folder:
                saved = None
                if ranks.rank == 0:  # all hold the same, to the bit
                    session.save(Path(folder))
                    saved = ray.train.Checkpoint.from_directory(folder)
                ray.train.report({LINES: lines}, checkpoint=saved)
        elif due:
            ray.train.report({LINES: lines})
        else:
            continue
        lines, told = [], time.monotonic()
        if progress.done or stopping:
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

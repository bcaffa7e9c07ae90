"""A training as a job that is submitted to a Ray cluster over HTTP; the driver stays where the worker is.

    python -m orchestration.cluster CHANNEL     what the cluster runs: the fit, beside the attempt's own files

Both sides see one folder, the channel of ray_train; here it has three files more:

    share.json       what the training may use
    alive            touched by the driver; without it the training ends, so that none is left of a dead one
    result.json      where the finished checkpoint is, or the error
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from affinery import tensor_files
from orchestration import planner, ray_train, talk
from orchestration.errors import RayUnavailable, TrainingFailed

if TYPE_CHECKING:
    from orchestration.planner import Share

SHARE, ALIVE, RESULT = "share.json", "alive", "result.json"
NOT_SHARED = 3
"""The exit code of a submitted job that does not see its channel."""
ASK_SECONDS = 1.0
ALIVE_SECONDS, SILENT_SECONDS = 5.0, 120.0
STOP_SECONDS = 20.0
AGENT_SECONDS, NO_AGENT = 120.0, "No available agent"
"""How long a cluster that has just started is waited for, and what it says until then."""
Answer = TypeVar("Answer")
PACKAGES = ("affinery", "orchestration", "registry", "trainers")


def is_remote(address: str) -> bool:
    """Whether trainings are submitted there, instead of begun on a node."""
    return address.startswith(("http://", "https://"))


class Submitted:
    """A training on the cluster, as the driver sees it: like a thread that fits."""

    def __init__(self, address: str, channel: Path, share: Share) -> None:
        self.address, self.channel = address, channel
        self.name = f"affinery-{channel.parent.name}"
        self.id = f"{self.name}-{channel.name}"
        self._client = self._asked(lambda: _client(address))
        self._share = share
        self._ended: Any = None
        self._asked_at = self._touched_at = 0.0

    def start(self) -> None:
        """Submits it; earlier attempts, whose drivers may be gone, are stopped first."""
        tensor_files.write_whole(self.channel / SHARE, json.dumps(asdict(self._share)).encode())
        (self.channel / RESULT).unlink(missing_ok=True)
        (self.channel / ALIVE).touch()
        for job in self._asked(self._client.list_jobs):
            if (job.submission_id or "").startswith(f"{self.name}-") and not job.status.is_terminal():
                self._stop(job.submission_id)
        command = f"python -m orchestration.cluster '{self.channel.as_posix()}'"
        modules = [str(Path(__file__).parents[1] / name) for name in PACKAGES]
        told = {name: os.environ.get(name, value) for name, value in ray_train.ENVIRONMENT.items()}
        until = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._asked(
                    lambda: self._client.submit_job(
                        entrypoint=command,
                        submission_id=self.id,
                        runtime_env={"py_modules": modules, "env_vars": told},
                        entrypoint_num_cpus=0,
                    )
                )
            except RayUnavailable as error:
                if NO_AGENT not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(ASK_SECONDS)
            else:
                return

    def is_alive(self) -> bool:
        return self._ended is None

    def join(self, seconds: float) -> None:
        """Until it has ended, or so long."""
        until = time.monotonic() + seconds
        while self._ended is None:
            now = time.monotonic()
            if now - self._touched_at > ALIVE_SECONDS:
                self._touched_at = now
                (self.channel / ALIVE).touch()
            if now - self._asked_at > ASK_SECONDS:
                self._asked_at = now
                info = self._asked(lambda: self._client.get_job_info(self.id))
                self._ended = info if info.status.is_terminal() else None
            if now >= until:
                return
            time.sleep(min(seconds, ray_train.POLL_SECONDS))

    def end(self) -> None:
        """Stops it on the cluster, whatever it does."""
        if self._ended is None:
            self._stop(self.id)

    def finished(self) -> Path:
        """The finished checkpoint, or the error that the cluster's side met."""
        try:
            found = json.loads((self.channel / RESULT).read_bytes())
        except FileNotFoundError:
            if self._ended.driver_exit_code == NOT_SHARED:
                raise RayUnavailable(self.address, _not_shared(self.channel)) from None
            raise TrainingFailed(f"its job {self.id} on {self.address}: {self._ended.message}") from None
        if "error" in found:
            raise talk.unpacked(found["error"])
        return Path(found["checkpoint"])

    def _stop(self, submission_id: str) -> None:
        self._asked(lambda: self._client.stop_job(submission_id))
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until:
            if self._asked(lambda: self._client.get_job_status(submission_id)).is_terminal():
                return
            time.sleep(ray_train.POLL_SECONDS)

    def _asked(self, question: Callable[[], Answer]) -> Answer:
        """What the cluster answers. Raises RayUnavailable where it does not, or lets nobody in."""
        try:
            return question()
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RayUnavailable(self.address, text) from error


def _client(address: str) -> Any:
    ray_train.prepare_environment(local=False)
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


def _not_shared(channel: Path) -> str:
    return (
        f"its machines do not see {channel}. A workspace whose trainings are submitted has to be on storage "
        f"that the cluster mounts at the same path"
    )


def main() -> None:
    """The cluster's side: fits, and writes down how it ended."""
    channel = Path(sys.argv[1])
    if not (channel / ray_train.PLAN).exists():
        sys.stderr.write(_not_shared(channel))
        sys.exit(NOT_SHARED)
    threading.Thread(target=_end_when_silent, args=(channel / ALIVE,), daemon=True).start()
    result: dict[str, Any]
    try:
        result = {"checkpoint": str(_fit(channel))}
    except Exception as error:  # noqa: BLE001 - whatever it was, the driver is told
        result = {"error": talk.packed(error)}
    tensor_files.write_whole(channel / RESULT, json.dumps(result).encode())


def _fit(channel: Path) -> Path:
    from orchestration.planner import Share
    from trainers.plan import TrainingPlan

    plan = TrainingPlan.from_json((channel / ray_train.PLAN).read_text(encoding="utf-8"))
    share = Share(**json.loads((channel / SHARE).read_bytes()))
    ray_train.connect_ray("auto")
    job = channel.parent.name[:8]
    share = replace(planner.fitting(share, ray_train.machines(), job), ray="auto")
    fit = ray_train.Fit(plan, channel.parent, channel, share)
    fit.run()
    return fit.finished()


def _end_when_silent(alive: Path) -> None:
    """Ends this process, and its training with it, once no driver has touched the file for long."""
    last, since = None, time.monotonic()
    while True:
        try:
            touched = alive.stat().st_mtime_ns
        except FileNotFoundError:
            touched = None
        if touched != last:
            last, since = touched, time.monotonic()
        elif time.monotonic() - since > SILENT_SECONDS:
            os._exit(1)
        time.sleep(ALIVE_SECONDS)


if __name__ == "__main__":
    main()

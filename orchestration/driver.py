"""One attempt of one job, from the claim's facts to its end, in a process of its own.

    python -m orchestration.driver PARENT      reads one order from its standard input: JSON, on one line

It ends with its worker, whatever becomes of that. Until an order comes it makes itself ready: it imports what
every training needs. Its standard output belongs to what it tells (see talk.py); what libraries print goes to
the attempt's driver.log.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affinery.errors import UserError
from orchestration import failpoints, kinds, queue, ray_train
from orchestration.errors import DiskFull, OlderTaskDisturbed, Requested
from orchestration.jobs import Claim
from orchestration.kinds.contract import Attempt, own_folder
from orchestration.kinds.train import end_runs
from orchestration.planner import Share
from orchestration.services import Places, Services
from orchestration.talk import Teller
from registry.errors import BlobDamaged, BlobMissing

LOG = "driver.log"
LASTING = (UserError, OlderTaskDisturbed, BlobDamaged, BlobMissing)
"""Errors that the same job would meet again."""
READY_SECONDS = 0.05
PR_SET_PDEATHSIG = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a driver is to do: a claim, as it travels to another process, and what it may use.

    end_runs: nothing but to end the MLflow runs of a job that will have no result, with this status.
    """

    places: Places
    job: str
    owner: str
    fence: int
    attempt: int
    failures: int
    share: Share
    end_runs: str | None = None

    @classmethod
    def of(cls, services: Services, held: Claim, share: Share) -> Order:
        return cls(services.places, held.job.id, held.owner, held.fence, held.attempt, held.failures, share)

    def to_line(self, end_runs: str | None = None) -> bytes:
        return json.dumps(asdict(self) | {"end_runs": end_runs}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Order:
        raw = json.loads(line)
        return cls(**{**raw, "places": Places(**raw["places"]), "share": Share(**raw["share"])})


def run(services: Services, held: Claim, share: Share, tell: Teller) -> None:
    """Does the job and tells how it ended. Only an interruption is raised."""
    failpoints.reach("started")
    held = held.planned(share.strategy)
    if share.why:
        tell.stage(f"{share.strategy}: {share.why}")
    attempt = Attempt(services, held, share, tell)
    try:
        attempt.check()
        kinds.kind(held.job.kind).run(attempt)
    except Requested as request:
        tell.stopped(request.args[0])
    except Exception as error:  # whatever it was, the worker writes it down as the reason
        log.warning("The attempt failed", exc_info=True)
        if DiskFull.is_behind(error):
            error = DiskFull(str(attempt.folder))
        tell.failed(error, lasting=isinstance(error, LASTING) or bool(getattr(error, "lasting", False)))


def main() -> None:
    """The driver's process. Its arguments: the process that it ends with; where Ray is, if it is known."""
    end_with(int(sys.argv[1]))
    send = _own_output()
    line = _next_line(sys.argv[2] if len(sys.argv) > 2 else None)
    if not line:
        return
    order = Order.from_line(line)
    threading.Thread(target=_end_with_input, daemon=True).start()
    own = own_folder(Path(order.places.runs), order.job, order.fence)
    own.mkdir(parents=True, exist_ok=True)
    _log_to(own / LOG)
    services = order.places.open()
    if order.end_runs is not None:
        end_runs(services, order.job, order.end_runs)
        return
    with services.sessions.read() as session:
        job = queue.get(session, order.job)
    held = Claim(job, order.owner, order.fence, order.attempt, order.failures)
    run(services, held, order.share, Teller(send))
    # Nothing is left to be written: to take Ray, MLflow and torch apart in order would take seconds.
    os._exit(0)


def end_with(parent: int) -> None:
    """Ends this process with the one that started it, at once, even where that is killed outright."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before this was asked for
        os._exit(1)


def _end_with_input() -> None:
    """The worker says nothing more; where the kernel does not tell of its end, the closed pipe does."""
    sys.stdin.buffer.read()
    os._exit(1)


def _own_output() -> Callable[[dict[str, Any]], None]:
    """Takes the standard output for what is told, and gives libraries the error output instead."""
    own = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    alone = threading.Lock()

    def send(entry: dict[str, Any]) -> None:
        with alone:
            own.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    return send


def _next_line(ray: str | None) -> bytes:
    """The order. Until it comes, what a training will need is made ready; nothing where none comes."""
    if not _ordered(READY_SECONDS):
        ray_train.warm_up(ray, _ordered)
    return sys.stdin.buffer.readline()


def _ordered(seconds: float = 0.0) -> bool:
    """Whether an order has come, or comes in this time."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _log_to(path: Path) -> None:
    """Errors of Python, of libraries and of this program, in one file."""
    file = path.open("ab", buffering=0)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", force=True)


if __name__ == "__main__":
    main()

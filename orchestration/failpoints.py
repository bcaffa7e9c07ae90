"""Named moments at which tests make a process die, fail or wait.

    AFFINERY_FAILPOINT="uploaded=kill"                  at every pass
    AFFINERY_FAILPOINT="training:3=raise, …"            at the third pass of a process
    AFFINERY_FAILPOINT="before-commit=kill@/tmp/mark"   once, by whichever process makes the file /tmp/mark

| point | where |
|---|---|
| `claimed` | worker: a job was claimed, its driver is not started yet |
| `started` | driver: it has its job |
| `training` | driver: a line of progress has come |
| `stepping` | Ray's train worker: before each report |
| `trained` | driver: the finished checkpoint is there |
| `judged` | driver: the samples are drawn |
| `blob-put` | driver: after each blob is put |
| `uploaded` | driver: all blobs are put |
| `row` | driver: before each row of the publishing transaction |
| `before-commit`, `after-commit` | driver: around the transaction that ends the job |
| `ray-started` | keeper of a worker's own Ray: it runs, nobody is told yet |
| `settling` | worker: a driver has ended, nothing is written about it yet |

Actions: `kill` (SIGKILL to itself), `exit` (at once, without clean-up), `raise` (an error that may heal),
`stop` (SIGSTOP, until SIGCONT), `pause` (only this thread waits, until the file is gone; it needs one).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from orchestration.errors import FailpointReached

VARIABLE = "AFFINERY_FAILPOINT"
POINTS = (
    "claimed",
    "started",
    "training",
    "stepping",
    "trained",
    "judged",
    "blob-put",
    "uploaded",
    "row",
    "before-commit",
    "after-commit",
    "ray-started",
    "settling",
)
POLL_SECONDS = 0.05
_passes: Counter[str] = Counter()
_counting = threading.Lock()


def reach(point: str) -> None:
    """This process is at `point`. Without the variable: one look-up."""
    told = os.environ.get(VARIABLE)
    if told:
        _reach(point, told)


def _reach(point: str, told: str) -> None:
    with _counting:
        _passes[point] += 1
        count = _passes[point]
    for entry in told.split(","):
        where, _, what = entry.strip().partition("=")
        name, _, nth = where.partition(":")
        if name not in POINTS:
            raise ValueError(f"{VARIABLE}: there is no point {name!r}; there is {', '.join(POINTS)}")
        if name != point or (nth and int(nth) != count):
            continue
        action, _, mark = what.partition("@")
        if mark and not _made(Path(mark)):
            continue
        _act(action, point, mark)


def _made(mark: Path) -> bool:
    """Whether this process is the one that made the file."""
    try:
        with mark.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _act(action: str, point: str, mark: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(1)
        case "raise":
            raise FailpointReached(point)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "pause" if mark:
            while Path(mark).exists():
                time.sleep(POLL_SECONDS)
        case _:
            raise ValueError(f"{VARIABLE}: {action!r} is no action, or lacks its file")

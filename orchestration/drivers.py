"""The processes that a worker starts, one an attempt; one more may be kept ready, its imports done."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from orchestration.driver import LOG, Order
from orchestration.kinds.contract import REQUEST, own_folder
from orchestration.talk import told

TAIL_BYTES = 2000
CHORE_SECONDS = 60.0
READ_BYTES = 1 << 16


class Driver(Protocol):
    """One attempt's process, as its worker sees it."""

    def lines(self) -> list[dict[str, Any]]:
        """What it told since the last call; waits for nothing."""
        ...

    def ended(self) -> bool: ...

    def ask(self, request: str) -> None:
        """Lays a request where the driver looks: end soon, keep what is done."""
        ...

    def signal(self, number: int) -> None:
        """To the driver and all that it started."""
        ...

    def last_words(self) -> tuple[str, str]:
        """How it ended, and the end of its log."""
        ...


class Drivers(Protocol):
    """Where drivers come from. keep_ready: the next one is made ready, with this Ray."""

    def start(self, order: Order) -> Driver: ...

    def keep_ready(self, ray: str | None) -> None: ...

    def end_runs(self, order: Order, status: str) -> None:
        """Ends the MLflow runs of a job that will have no result; nobody waits for it."""
        ...

    def close(self) -> None: ...


class DriverProcess:
    """A driver in a process group of its own, so that Ctrl-C in a terminal reaches the worker alone."""

    def __init__(self, ray: str | None = None) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until it has an attempt's own
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestration.driver", str(os.getpid()), *([ray] if ray else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._rest = b""
        self._own: Path | None = None

    def begin(self, line: bytes, own: Path | None = None) -> None:
        """Gives it what it is to do. A process that is gone already says so when it is looked at."""
        assert self._process.stdin is not None
        self._own = own
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            return

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def lines(self) -> list[dict[str, Any]]:
        assert self._process.stdout is not None
        while fresh := self._process.stdout.read(READ_BYTES):
            self._rest += fresh
        *whole, self._rest = self._rest.split(b"\n")
        return [entry for line in whole if (entry := told(line)) is not None]

    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: str) -> None:
        assert self._own is not None
        self._own.mkdir(parents=True, exist_ok=True)
        partial = self._own / f"{REQUEST}.partial"
        partial.write_text(request, encoding="utf-8")
        partial.replace(self._own / REQUEST)

    def signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def last_words(self) -> tuple[str, str]:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return how, self._tail()

    def _tail(self) -> str:
        self._log.seek(0)
        content = self._log.read()
        if self._own is not None and (self._own / LOG).exists():
            content += (self._own / LOG).read_bytes()
        last = [
            line for line in content[-TAIL_BYTES:].decode("utf-8", "replace").splitlines() if line.strip()
        ]
        return last[-1].strip() if last else ""

    def release(self) -> None:
        """Gives back what this process holds of it, once it has ended."""
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()


class DriverProcesses:
    """Drivers as processes. A spare one is taken where it is ready."""

    def __init__(self) -> None:
        self._spare: DriverProcess | None = None
        self._chores: list[DriverProcess] = []

    def start(self, order: Order) -> DriverProcess:
        driver = self._next()
        driver.begin(order.to_line(), own_folder(Path(order.places.runs), order.job, order.fence))
        return driver

    def keep_ready(self, ray: str | None) -> None:
        if self._spare is None or self._spare.ended():
            self._spare = DriverProcess(ray)

    def end_runs(self, order: Order, status: str) -> None:
        driver = self._next()
        driver.begin(order.to_line(status))
        self._chores = [chore for chore in self._chores if not chore.ended()] + [driver]

    def close(self) -> None:
        """Waits for what is still to be written to MLflow's spool, and ends the spare one."""
        until = time.monotonic() + CHORE_SECONDS
        while any(not chore.ended() for chore in self._chores) and time.monotonic() < until:
            time.sleep(0.05)
        for left in [*self._chores, *([self._spare] if self._spare else [])]:
            left.signal(signal.SIGKILL)
            left.last_words()
            left.release()
        self._chores, self._spare = [], None

    def _next(self) -> DriverProcess:
        spare, self._spare = self._spare, None
        return spare if spare is not None and not spare.ended() else DriverProcess()


def wait_for_talk(drivers: Sequence[Driver], seconds: float) -> None:
    """Until one of them says something or ends, or the time is over."""
    files = [driver for driver in drivers if isinstance(driver, DriverProcess)]
    if files:
        select.select(files, [], [], seconds)

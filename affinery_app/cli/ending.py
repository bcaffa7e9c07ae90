"""How a command ends that is told to end: by Ctrl-C, or in good order by SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class GoesOn(KeyboardInterrupt):
    """Ctrl-C where what was finished is kept: the same command goes on from there."""


class Stopped(SystemExit):
    """SIGTERM, as systemd and docker send it, where a command runs until then: that is no failure."""

    code = 0


def stop(number: int, frame: FrameType | None = None) -> None:
    """What a signal does. Raises Stopped for SIGTERM, otherwise KeyboardInterrupt."""
    if number == signal.SIGTERM:
        raise Stopped
    signal.default_int_handler(number, frame)


@contextmanager
def going_on() -> Iterator[None]:
    """What is done inside goes on when it is done again. Raises GoesOn on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise GoesOn from interruption

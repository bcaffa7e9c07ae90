"""Threads that wait for one thing get it in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident


class Turns:
    """A lock that is fair: threading's goes to whoever asks in the right moment.

    Within its turn a thread has another at once.
    """

    def __init__(self) -> None:
        self._line = deque[Lock]()  # the first has its turn; each of the others waits for its lock
        self._changing = Lock()
        self._whose: int | None = None

    @contextmanager
    def turn(self, patience_seconds: float) -> Iterator[bool]:
        """→ whether it came; false after so long"""
        if self._whose == get_ident():
            yield True
            return
        if not self._wait(patience_seconds):
            yield False
            return
        self._whose = get_ident()
        try:
            yield True
        finally:
            self._whose = None
            self._next()

    def _wait(self, patience_seconds: float) -> bool:
        mine = Lock()
        mine.acquire()
        with self._changing:
            self._line.append(mine)
            if mine is self._line[0]:
                return True
        if mine.acquire(timeout=patience_seconds):
            return True
        with self._changing:
            if mine is self._line[0]:  # in that very moment
                return True
            self._line.remove(mine)
        return False

    def _next(self) -> None:
        with self._changing:
            self._line.popleft()
            if self._line:
                self._line[0].release()

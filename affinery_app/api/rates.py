"""How often somebody may ask: a bucket of requests, which fills again by the second."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

MOST = 10_000  # buckets that are kept; who was not seen for longest starts with a full one


class Buckets:
    """A bucket for each who asks."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst = burst
        self.per_second = per_second
        self._clock = clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> int | None:
        """Take one. → None, or the whole seconds after which there is one again"""
        now = self._clock()
        left, since = self._held.pop(key, (float(self.burst), now))
        left = min(float(self.burst), left + (now - since) * self.per_second)
        enough = left >= 1
        self._held[key] = (left - 1 if enough else left, now)
        while len(self._held) > MOST:
            self._held.popitem(last=False)
        return None if enough else max(1, math.ceil((1 - left) / self.per_second))

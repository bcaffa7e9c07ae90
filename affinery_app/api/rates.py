"""How often somebody may ask: a bucket of requests, which fills again by the second; and how often guess."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from registry.tokens import digest

MOST = 10_000  # buckets that are kept; who was not seen for longest starts with a full one


class Buckets:
    """A bucket for each who asks."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst = burst
        self.per_second = per_second
        self._clock = clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def is_empty(self, key: str) -> bool:
        """Whether there is none to take."""
        left, since = self._held.get(key, (float(self.burst), 0.0))
        return left + (self._clock() - since) * self.per_second < 1

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


SLOW_SECONDS = 0.25
MOST_WAITING = 8
GOOD = 10_000  # what was shown and good, of which so many are remembered


@dataclass
class _Lane:
    """Those of one network who wait for their turn."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Guesses:
    """Wrong tokens, by the network that they come from.

    From where too many came, what is shown is looked at one at a time, slowly, and a few wait for it at most.
    Nobody is shut out by somebody else: a right token opens all the same, what was good before does not wait,
    and other networks do not notice.
    """

    def __init__(self, wrong: Buckets) -> None:
        self._wrong = wrong
        self._lanes: dict[str, _Lane] = {}
        self._good: OrderedDict[str, None] = OrderedDict()

    @asynccontextmanager
    async def turn(self, address: str, shown: str) -> AsyncIterator[bool]:
        """A turn to be looked at. → whether there is one; there is none where too many wait already"""
        network = network_of(address)
        if not self._wrong.is_empty(network) or digest(shown) in self._good:
            yield True
            return
        lane = self._lanes.setdefault(network, _Lane())
        if lane.waiting >= MOST_WAITING:
            yield False
            return
        lane.waiting += 1
        try:
            async with lane.lock:
                await asyncio.sleep(SLOW_SECONDS)
                yield True
        finally:
            lane.waiting -= 1
            if not lane.waiting:
                self._lanes.pop(network, None)

    def right(self, shown: str) -> None:
        """It was good."""
        key = digest(shown)
        self._good[key] = None
        self._good.move_to_end(key)
        while len(self._good) > GOOD:
            self._good.popitem(last=False)

    def wrong(self, address: str, shown: str) -> int | None:
        """It was not. → None, or the seconds after which another guess may be made"""
        self._good.pop(digest(shown), None)
        return self._wrong.take(network_of(address))


def network_of(address: str) -> str:
    """What counts as one who asks: an IPv4 address, or the 64 bits of IPv6 that one household has."""
    try:
        place = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(place, ipaddress.IPv6Address):
        if place.ipv4_mapped is not None:
            return str(place.ipv4_mapped)
        return str(ipaddress.ip_network((int(place) >> 64 << 64, 64)))
    return str(place)

"""Whose images are computed in the next pass: every tenant the same number, the oldest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """An image that waits for its next step."""

    @property
    def tenant(self) -> str: ...


W = TypeVar("W", bound=Waiting)


class Turns:
    """Counts the steps that each tenant has had, and lets those who had least go first."""

    def __init__(self) -> None:
        self._had: dict[str, int] = {}

    def choose(self, waiting: Sequence[W], most: int, alike: Callable[[W], object]) -> list[W]:
        """At most so many, by turns; all of them are `alike` the first. waiting: in order of arrival.

        Who comes anew starts where the one who had least stands: not ahead of all, and not behind.
        """
        lines: dict[str, list[W]] = {}
        for one in waiting:
            lines.setdefault(one.tenant, []).append(one)
        there = [self._had[tenant] for tenant in lines if tenant in self._had]
        least = min(there, default=0)
        self._had = {tenant: max(self._had.get(tenant, least), least) for tenant in lines}
        chosen: list[W] = []
        while lines and len(chosen) < most:
            tenant = min(lines, key=self._had.__getitem__)
            line = lines[tenant]
            at = next((i for i, one in enumerate(line) if not chosen or alike(one) == alike(chosen[0])), None)
            if at is None:
                del lines[tenant]
                continue
            chosen.append(line.pop(at))
            self._had[tenant] += 1
            if not line:
                del lines[tenant]
        return chosen

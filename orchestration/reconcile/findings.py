"""What differs between the registry and a neighbour, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One thing that differs. done: what was done about it; mend: what is to be done, where nothing could be.

    In a dry run nothing was done, and done says what would be.
    """

    neighbour: str
    where: str
    what: str
    done: str | None = None
    mend: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

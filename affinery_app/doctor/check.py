"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """name: of the part. what: what was found.

    mend: what to do about it, where it is not ok and what was found does not say so itself.
    """

    name: str
    state: str
    what: str
    mend: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

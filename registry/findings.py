"""What a verification found to be wrong: where, what, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

RESTORE = "Restore the registry's database from a backup taken before this happened."


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. nodes: whom it concerns; none where it concerns the whole registry."""

    check: str
    where: str
    what: str
    mend: str
    nodes: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for programs."""
        return {key: value for key, value in asdict(self).items() if key != "nodes"}


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, by number, and what was found."""

    counts: dict[str, int]
    findings: Sequence[Finding]

    @property
    def sound(self) -> bool:
        """Whether nothing at all was found."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for programs."""
        return {
            "sound": self.sound,
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
        }

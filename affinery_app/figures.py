"""Figures as people read them: a line each, an estimate with its interval on one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INTERVAL = {"mean", "low", "high"}
LAST = ("nearest", "samples")


def figures(results: Mapping[str, Any]) -> dict[str, str]:
    """The figures of an evaluation by name, those of quality first."""
    listed: dict[str, str] = {}
    for name, value in sorted(results.items(), key=lambda item: item[0].startswith(LAST)):
        if isinstance(value, dict) and value.keys() == INTERVAL:
            listed[name] = f"{value['mean']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
        elif isinstance(value, dict):
            listed |= {f"{name}.{part}": f"{each:.4g}" for part, each in value.items() if _is_number(each)}
        elif _is_number(value):
            listed[name] = f"{value:.4g}"
    return listed


def signed(value: float) -> str:
    """A difference, to three digits."""
    return f"{value:+.3g}".replace("-", "−", 1) if value else "0"


def size(count: int) -> str:
    """Bytes, in the unit that fits."""
    amount = float(count)
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

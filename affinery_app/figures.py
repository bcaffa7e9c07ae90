"""Figures as people read them: a line each, an estimate with its interval on one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INTERVAL = {"mean", "low", "high"}
LAST = ("nearest", "samples")


def figures(results: Mapping[str, Any]) -> dict[str, str]:
    """The figures of an evaluation by name, those of quality first."""
    from registry.metrics import as_figure

    listed: dict[str, str] = {}
    for name, value in sorted(results.items(), key=lambda item: item[0].startswith(LAST)):
        parts = value if isinstance(value, dict) else {}
        inner = {part: each for part, told in parts.items() if (each := as_figure(told)) is not None}
        if inner.keys() == parts.keys() == INTERVAL:
            listed[name] = f"{inner['mean']:.4g} ({inner['low']:.4g} to {inner['high']:.4g})"
        elif (number := as_figure(value)) is not None:
            listed[name] = f"{number:.4g}"
        else:
            listed |= {f"{name}.{part}": f"{each:.4g}" for part, each in inner.items()}
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

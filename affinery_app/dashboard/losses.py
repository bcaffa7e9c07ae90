"""Losses as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from affinery_app.charts import line_chart
from trainers.evaluation.continual import smoothed


def chart(curves: Mapping[str, Sequence[tuple[int, float]]], title: str = "Training loss over steps") -> str:
    """The running means of some losses, by name. Empty text where none has two points yet."""
    drawn = {name: smoothed(list(curve)) for name, curve in curves.items() if len(curve) > 1}
    return line_chart(drawn, "step", "loss", title)

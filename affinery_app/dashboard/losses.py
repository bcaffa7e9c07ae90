"""Losses as charts, and the same as a table for who does not see them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from html import escape

from affinery_app.charts import line_chart
from trainers.evaluation.continual import smoothed

Curve = Sequence[tuple[int, float]]
ROWS = 8


def chart(
    curves: Mapping[str, Curve], title: str = "Training loss over steps", key: str | int = "loss"
) -> str:
    """The running means of some losses, by name. Empty text where none has two points yet.

    key: what the table is known by on its page.
    """
    drawn = {name: smoothed(list(curve)) for name, curve in curves.items() if len(curve) > 1}
    return line_chart(drawn, "step", "loss", title) + _table(drawn, title, key) if drawn else ""


def _table(curves: Mapping[str, Curve], title: str, key: str | int) -> str:
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    chosen = sorted({steps[round(i * (len(steps) - 1) / (ROWS - 1))] for i in range(ROWS)})
    head = "".join(f'<th scope="col" class="right">{escape(name)}</th>' for name in curves)
    rows = ""
    for step in chosen:
        cells = "".join(_cell(_at(curve, step)) for curve in curves.values())
        rows += f'<tr><th scope="row">{step:,}</th>{cells}</tr>'
    return (
        f'<details class="more-facts" id="table-{key}"><summary>The same as a table</summary>'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}, as a table"><table>'
        f'<thead><tr><th scope="col">Step</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def _at(curve: Curve, step: int) -> float | None:
    """The last that was known at a step."""
    place = bisect_right(curve, step, key=lambda point: point[0])
    return curve[place - 1][1] if place else None


def _cell(value: float | None) -> str:
    return f'<td class="right">{"–" if value is None else f"{value:.4g}"}</td>'

"""The matrix R[stage, task] as pages and reports show it: the figures, and what is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from affinery_app.charts import heat_table
from affinery_app.figures import signed


@dataclass(frozen=True)
class Shown:
    """One figure of it. better: which way it counts; average: over all tasks, after the last stage."""

    figure: str
    better: str
    average: float
    table: str


READ = (
    ("learnt since step 0", "learnt_since_step_0"),
    ("forgotten, first − last", "forgetting_first_last"),
    ("forgotten, max − last", "forgetting_max_last"),
)


def shown(found: Mapping[str, Any] | None) -> list[Shown]:
    """As it was kept: its distance, and recognition where that was measured."""
    if found is None:
        return []
    return [_shown(matrix) for matrix in (found, found["recognition"]) if matrix is not None]


def _shown(matrix: Mapping[str, Any]) -> Shown:
    tasks = matrix["tasks"]
    rows = [("step 0", matrix["step_0"]), *zip(matrix["stages"], matrix["matrix"], strict=True)]
    below = [(words, [_told(matrix[key][task]) for task in tasks]) for words, key in READ]
    more = matrix["more_is_better"]
    return Shown(
        matrix["figure"],
        "more is better" if more else "less is better",
        matrix["average"],
        heat_table(rows, tasks, "after", more, below),
    )


def _told(value: float | None) -> str:
    return "–" if value is None else signed(value)

"""What a backbone that keeps learning remembers: the matrix R[stage, task], and what is read from it.

R[s, t] is a figure of task t after stage s, a stage being one addition of tasks. Forgetting is told as how
much worse the last figure is than the first (first − last) and than the best there ever was (max − last);
positive is worse, whichever way the figure counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = tuple[float | None, ...]


@dataclass(frozen=True)
class Matrix:
    """rows: a stage each, of one figure a task, None before the task was learnt.

    before: each task's figure at step 0, where its classes are all the null row. A task that has no such
    figure is None everywhere, and so is what is read from its column.
    """

    figure: str
    stages: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    before: Row
    more_is_better: bool

    def column(self, task: str) -> list[float]:
        """A task's figures, from the stage that it was learnt in."""
        place = self.tasks.index(task)
        return [value for row in self.rows if (value := row[place]) is not None]

    @property
    def average(self) -> float:
        """Over all tasks that have the figure, after the last stage."""
        last = [value for value in self.rows[-1] if value is not None]
        return sum(last) / len(last)

    def forgotten_since_first(self, task: str) -> float | None:
        """first − last"""
        found = self.column(task)
        return self._loss(found[0], found[-1]) if found else None

    def forgotten_since_best(self, task: str) -> float | None:
        """max − last"""
        found = self.column(task)
        if not found:
            return None
        best = max(found) if self.more_is_better else min(found)
        return self._loss(best, found[-1])

    def learnt(self, task: str) -> float | None:
        """How much better a task became than it was at step 0."""
        start, found = self.before[self.tasks.index(task)], self.column(task)
        return self._loss(found[0], start) if found and start is not None else None

    def _loss(self, then: float, now: float) -> float:
        return then - now if self.more_is_better else now - then

    def to_json(self) -> dict[str, Any]:
        """The matrix, and all that is read from it."""
        return {
            "figure": self.figure,
            "more_is_better": self.more_is_better,
            "stages": list(self.stages),
            "tasks": list(self.tasks),
            "matrix": [list(row) for row in self.rows],
            "step_0": list(self.before),
            "average": self.average,
            "forgetting_first_last": {task: self.forgotten_since_first(task) for task in self.tasks},
            "forgetting_max_last": {task: self.forgotten_since_best(task) for task in self.tasks},
            "learnt_since_step_0": {task: self.learnt(task) for task in self.tasks},
        }


SMOOTH = 0.9


def steps_to(curve: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """The first step at which the running mean of a loss is at a threshold; None where it never is.

    Forward transfer is how many fewer steps a warm start takes to the loss at which a cold one ended.
    """
    return next((step for step, value in smoothed(curve) if value <= threshold), None)


def smoothed(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A running mean, without the pull of its beginning."""
    found, total, weight = [], 0.0, 0.0
    for step, value in curve:
        total, weight = SMOOTH * total + (1 - SMOOTH) * value, SMOOTH * weight + (1 - SMOOTH)
        found.append((step, total / weight))
    return found

"""What is being learnt: the losses that a job reported, how far it is, how long it still takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from affinery_app.wiring import Workspace
from orchestration import publishing
from orchestration.jobs import JobRecord

Curve = list[tuple[int, float]]
RECENT = 30  # reports by which what is left is judged


@dataclass(frozen=True)
class Learning:
    """A job and its losses. curves: by task; seconds_left: None where nothing tells it."""

    job: JobRecord
    curves: dict[str, Curve]
    step: int
    of: int
    seconds_left: float | None

    @property
    def share(self) -> float:
        return min(1.0, self.step / self.of) if self.of else 0.0

    @property
    def losses(self) -> dict[str, float]:
        """By task the last that was reported."""
        return {task: curve[-1][1] for task, curve in self.curves.items() if curve}


def learning(space: Workspace, job: JobRecord) -> Learning:
    """From the job's own reports, which lie beside its checkpoints."""
    points = publishing.points(space.runs / job.id)
    curves: dict[str, Curve] = {task: [] for task in job.tasks}
    curves |= {
        task: sorted((step, loss) for step, (loss, _) in found.items()) for task, found in points.items()
    }
    told = job.progress or {}
    step = max((curve[-1][0] for curve in curves.values() if curve), default=int(told.get("step") or 0))
    of = int(job.recipe.get("steps") or told.get("of") or 0)
    times = sorted((step, at) for found in points.values() for step, (_, at) in found.items())
    return Learning(job, curves, step, of, _left(times[-RECENT * len(points) or None :], of - step))


def _left(times: Sequence[tuple[int, float]], steps: int) -> float | None:
    """By the median pace of the last reports: a pause, as between two attempts, is not one."""
    paces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(times) if b[0] > a[0] and b[1] > a[1]]
    return None if not paces else max(0, steps) * median(paces)

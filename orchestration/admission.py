"""Where the queue's memory is limited, a training counts with what it needs, or is refused at once.

What a job says itself stands; the estimate is for those that say nothing. Without a limit nothing is
estimated, and nothing refused: the machine that schedules need not be the one that trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from orchestration import needs
from orchestration.errors import OverLimit
from orchestration.needs import Learner, Need
from orchestration.planner import GIB
from orchestration.queue import limits
from registry.records import BackboneRecord, TaskRecord


def need_of(
    session: Session, backbone: BackboneRecord, learners: Sequence[Learner], recipe: Mapping[str, Any]
) -> Need | None:
    """What a training needs; None where memory is not limited. Takes its time, so not while others wait."""
    return needs.of_training(backbone, learners, recipe) if limits.memory_bytes(session) is not None else None


def counted(
    session: Session, names: Sequence[str], need: Need | None, recipe: Mapping[str, Any], workers: int = 1
) -> int | None:
    """The bytes with which a training counts that does not say them. Raises OverLimit."""
    most = limits.memory_bytes(session)
    if need is None or most is None:
        return None
    takes = workers * need.least_bytes(recipe, workers)
    if takes > most:
        left = most / workers - need.weights_bytes - need.states_bytes
        advice = needs.advice_for(need, recipe, left, workers)
        raise OverLimit(
            f"The training of {' + '.join(names)} needs at least",
            f"{takes / GIB:.3g} GiB",
            f"{most / GIB:.3g} GiB",
            [*advice, "--memory, where what it takes is known better"],
            takes,
        )
    return takes


def of_jobs(
    session: Session,
    backbone: BackboneRecord,
    jobs: Sequence[Sequence[TaskRecord]],
    recipe: Mapping[str, Any],
) -> int:
    """What each of these trainings counts with, under a limit of now or later: the largest's bytes.

    Raises OverLimit.
    """
    found = [needs.of_training(backbone, learners, recipe) for learners in jobs]
    for learners, need in zip(jobs, found, strict=True):
        counted(session, [task.name for task in learners], need, recipe)
    return max(need.least_bytes(recipe) for need in found)


def of_tasks(
    session: Session,
    backbone: BackboneRecord,
    learners: Sequence[TaskRecord],
    recipe: Mapping[str, Any],
    workers: int = 1,
) -> int | None:
    """As counted, of tasks that are registered."""
    need = need_of(session, backbone, learners, recipe)
    return counted(session, [task.name for task in learners], need, recipe, workers)

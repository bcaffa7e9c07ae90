"""What of a plan is there already under no key of its own: its tasks were scheduled by hand."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from affinery.errors import ConfigInvalid
from orchestration import queue
from orchestration.jobs import JobRecord
from registry import backbones, datasets, tasks
from registry.models import Task


def job_of(
    session: Session, names: Sequence[str], backbone: str, sources: Sequence[str], kinds: Sequence[str]
) -> JobRecord | None:
    """The newest job of these tasks; None where none of them is there.

    Raises ConfigInvalid where only some are, where one is another task of the same name, or where they were
    not scheduled in one job.
    """
    there = set(session.scalars(select(Task.name).where(Task.name.in_(names))))
    if not there:
        return None
    for name in names:
        if name not in there:
            known = sorted(there)[0]
            raise ConfigInvalid(
                f"task {name}", f"is new, but {known!r} beside it is there already; part the two"
            )
    on = backbones.get(session, backbone).ref
    for name, source, kind in zip(names, sources, kinds, strict=True):
        task = tasks.get(session, name)
        data = datasets.get(session, source).ref if "@" in source else source
        found = (task.backbone, task.dataset if "@" in source else task.dataset.rpartition("@")[0], task.kind)
        wanted = (on, data, kind)
        for word, own, other in zip(("on", "learnt from", "of the kind"), found, wanted, strict=True):
            if own != other:
                reason = f"is there already, {word} {own} and not {other}; give this one another name"
                raise ConfigInvalid(f"task {name}", reason)
    jobs = [queue.page(session, limit=1, task=name) for name in names]
    if not all(jobs):
        name = names[[bool(each) for each in jobs].index(False)]
        raise ConfigInvalid(
            f"task {name}", f"is there already, but was never scheduled: affinery task train {quote(name)}"
        )
    if len({each[0].id for each in jobs}) > 1:
        raise ConfigInvalid(
            f"task {names[0]}", f"is there already, but not in one job with {names[-1]!r}; part them"
        )
    return jobs[0][0]

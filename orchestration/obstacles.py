"""Why a queued job is not taken however long it waits: a limit of the queue, or too small a machine."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from sqlalchemy.orm import Session

from orchestration.jobs import Capacity, JobRecord
from orchestration.planner import GIB, Machine, told
from orchestration.queue import limits
from orchestration.queue.limits import EACH, Limit
from registry import backbones


def obstacles(session: Session, jobs: Sequence[JobRecord], here: Machine) -> dict[str, str]:
    """By id, those of these jobs that something stands in the way of, and what. here: this machine."""
    waiting = [job for job in jobs if job.state == "queued"]
    if not waiting:
        return {}
    known = limits.list_all(session)
    found = {job.id: _limit(session, job, known) or _size(job, here) for job in waiting}
    return {job_id: what for job_id, what in found.items() if what is not None}


def _limit(session: Session, job: JobRecord, known: Sequence[Limit]) -> str | None:
    """The limit that is lower than what this one job takes alone."""
    takes = job.resources()
    for limit in known:
        if limit.scope == "resource" and (needs := getattr(takes, limit.key)) > limit.most:
            amounts = (f"{needs / GIB:.3g} GiB", f"{limit.most / GIB:.3g} GiB")
            if limit.key != "memory_bytes":
                amounts = (f"{needs:g}", f"{limit.most:g}")
            return _told(limit, f"it takes {amounts[0]} of {limit.key}, and at most {amounts[1]} may run")
    own = {(limit.scope, limit.key): limit for limit in known}
    names = {"submitter": job.submitted_by}
    if job.backbone_id is not None and any(limit.scope == "backbone" for limit in known):
        names["backbone"] = backbones.by_id(session, job.backbone_id).ref
    for scope, name in names.items():
        closed = own.get((scope, name or ""), own.get((scope, EACH)))
        if name is not None and closed is not None and closed.most < 1:
            return _told(closed, f"no job of the {scope} {name} may run")
    return None


def _told(limit: Limit, what: str) -> str:
    return f"never runs: {what}; affinery queue limit set {limit.scope} {quote(limit.key)} MORE"


def _size(job: JobRecord, here: Machine) -> str | None:
    takes = job.resources()
    if here.capacity.holds(Capacity(takes.cpus, takes.gpus, takes.memory_bytes)):
        return None
    return f"waits for a larger worker: it needs {told(takes)}, this machine has {told(here.capacity)}"

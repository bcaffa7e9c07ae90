"""What the queue hands out about its jobs, and what it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar

from registry.models.jobs import KINDS, STATES, STRATEGIES

__all__ = ["DEAD", "DEFAULTS", "KINDS", "LIVE", "STATES", "STRATEGIES", "Capacity", "Claim", "JobRecord"]

LIVE = ("queued", "running", "paused")
DEAD = ("dead", "cancelled")


@dataclass(frozen=True)
class Capacity:
    """Processors, GPUs (fractions are shares of one) and memory: what a job needs, or what a worker has."""

    cpus: float = math.inf
    gpus: float = math.inf
    memory_bytes: float = math.inf

    def holds(self, other: Capacity) -> bool:
        """Whether other fits into this."""
        return other.cpus <= self.cpus and other.gpus <= self.gpus and other.memory_bytes <= self.memory_bytes

    def less(self, other: Capacity) -> Capacity:
        """What is left of this when other is taken."""
        return Capacity(
            self.cpus - other.cpus, self.gpus - other.gpus, self.memory_bytes - other.memory_bytes
        )


DEFAULTS: Mapping[str, Capacity] = MappingProxyType(dict.fromkeys(KINDS, Capacity(1.0, 0.0, 0)))
"""By kind, what a job needs that does not say it."""


@dataclass(frozen=True)
class JobRecord:
    """One entry of the queue.

    number: its place in the order of acceptance. payload: what its kind is to do; a training's is its recipe.
    needs: jobs that must be done first; waits: how many of them are not. generation: how often it was taken
    up again after it was dead or cancelled; attempts: all tries; failures: those of this generation that
    ended badly. request: what its worker was asked for and has not done yet. progress: step, of, losses by
    task, what it is doing beside learning, and seconds_a_step once it is done. cpus, gpus, memory_bytes: None
    where those of its kind are meant. error_here: the error with the places of this machine, where it names
    any.
    """

    id: str
    number: int
    kind: str
    state: str
    tasks: tuple[str, ...]
    payload: dict[str, Any]
    needs: tuple[str, ...]
    strategy: str | None
    workers: int
    priority: int
    submitted_by: str | None
    cpus: float | None
    gpus: float | None
    memory_bytes: int | None
    backbone_id: int | None
    schedule_id: int | None
    created_at: datetime
    run_at: datetime
    fence: int
    generation: int
    attempts: int
    failures: int
    max_attempts: int
    timeout_seconds: float | None
    waits: int
    owner: str | None
    heartbeat_at: datetime | None
    request: str | None
    requested_by: str | None
    requested_at: datetime | None
    progress: dict[str, Any] | None
    error: str | None
    error_here: str | None = None

    HERE: ClassVar = frozenset({"error_here"})

    @property
    def why(self) -> str | None:
        """Its error, as who sits at this machine is told it."""
        return self.error_here or self.error

    @property
    def doing(self) -> str:
        """What it does beside learning, as its worker told it last; "" where it does not run."""
        return str((self.progress or {}).get("doing", "")) if self.state == "running" else ""

    @property
    def recipe(self) -> dict[str, Any]:
        """How a training trains; empty for other kinds."""
        recipe: dict[str, Any] = self.payload.get("recipe", {})
        return recipe

    def resources(self, defaults: Mapping[str, Capacity] = DEFAULTS) -> Capacity:
        """What one attempt of it takes of a worker."""
        own = defaults[self.kind]
        return Capacity(
            own.cpus if self.cpus is None else self.cpus,
            own.gpus if self.gpus is None else self.gpus,
            own.memory_bytes if self.memory_bytes is None else self.memory_bytes,
        )

    def in_brief(self, *, here: bool = False) -> dict[str, Any]:
        """What a list says of it: where it stands, not what it was given nor what came of it."""
        whole = self.to_json(here=here)
        told = {name: value for name, value in (self.progress or {}).items() if name != "result"}
        return {name: whole[name] for name in BRIEF} | {"progress": told or None, "error": whole["error"]}

    def to_json(self, *, here: bool = False) -> dict[str, Any]:
        """The fields as plain JSON; instants in ISO 8601. here: with the places of this machine."""
        plain = _plain(self) | {"tasks": list(self.tasks), "needs": list(self.needs)}
        if here:
            return plain | {"error": self.why}
        progress = self.progress
        if progress is not None and "result" in progress:
            progress = progress | {"result": without_places(self.kind, progress["result"])}
        return plain | {"payload": without_places(self.kind, self.payload), "progress": progress}


def without_places(kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What was asked of a job of this kind, or came of it, as it is told elsewhere than on this machine."""
    places = PLACES.get(kind, ())
    return {name: value for name, value in facts.items() if name not in places}


PLACES = {"export": ("out", "path")}
"""By kind of job, what in its payload and its result names a place of this machine."""
BRIEF = (
    *("number", "id", "kind", "state", "tasks", "strategy", "priority", "submitted_by", "needs", "waits"),
    *("created_at", "run_at", "heartbeat_at", "owner", "request", "attempts"),
)


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds, until its lease runs out. Every write of its carries the fence.

    attempt counts all tries; failures those of this generation, before this one, that ended badly.
    """

    job: JobRecord
    owner: str
    fence: int
    attempt: int
    failures: int = 0

    def planned(self, strategy: str) -> Claim:
        """This claim, of a training that left its strategy open, with the one that was chosen for it."""
        if self.job.kind != "train" or self.job.strategy is not None:
            return self
        return replace(self, job=replace(self.job, strategy=strategy))


@dataclass(frozen=True)
class AttemptRecord:
    """One try of a job. outcome: done, failed, lost, interrupted, cancelled, paused; None while it runs."""

    number: int
    generation: int
    fence: int
    owner: str | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: str | None
    error_here: str | None = None

    HERE: ClassVar = frozenset({"error_here"})

    @property
    def why(self) -> str | None:
        """Its error, as who sits at this machine is told it."""
        return self.error_here or self.error

    def to_json(self, *, here: bool = False) -> dict[str, Any]:
        """The fields as plain JSON; instants in ISO 8601. here: with the places of this machine."""
        return _plain(self) | ({"error": self.why} if here else {})


def _plain(record: JobRecord | AttemptRecord) -> dict[str, Any]:
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
        if name not in record.HERE
    }


@dataclass(frozen=True)
class Order:
    """A job to be accepted.

    tasks: those that it trains, by name. after: ids of jobs to be done before it, of earlier ones or of the
    same batch. key: an idempotency key. run_at: not before this moment. datasets: by task, the dataset
    version (its node) to learn where it is not the task's own.
    """

    id: str
    kind: str = "train"
    tasks: tuple[str, ...] = ()
    payload: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    key: str | None = None
    priority: int = 0
    run_at: datetime | None = None
    strategy: str | None = None
    workers: int = 1
    cpus: float | None = None
    gpus: float | None = None
    memory_bytes: int | None = None
    backbone_id: int | None = None
    submitted_by: str | None = None
    schedule_id: int | None = None
    max_attempts: int = 5
    timeout_seconds: float | None = None
    datasets: Mapping[str, int] = field(default_factory=dict)

"""What may be asked of a job, whatever its kind, as HTTP says it."""

from __future__ import annotations

import re
from datetime import UTC
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, Field

from affinery.errors import ConfigInvalid
from affinery_app.api.shapes import Facts, Sent, Word

Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d([.,]\d+)?)?([Zz]|[+-]\d\d:?\d\d)", re.ASCII)


def _written(told: object) -> object:
    """A moment as text: what is a number, or looks like one, would be taken for seconds since 1970."""
    if not isinstance(told, str) or _MOMENT.fullmatch(told) is None:
        raise ValueError("write it as RFC 3339, as 2026-12-24T18:00:00Z or 2026-12-24T18:00:00+01:00")
    return told


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_written)]
Priority = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Terms(Sent):
    """When a job runs. key: the same again, from whomever, schedules nothing; an Idempotency-Key is one too,
    its sender's alone.
    """

    after: list[Word] = Field(default=[], max_length=200, description="Jobs to be done before: number or id.")
    priority: Priority = 0
    run_at: Moment | None = Field(default=None, description="Not before this moment (RFC 3339).")
    timeout_seconds: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    key: Word | None = None

    def order(self, by: str) -> dict[str, Any]:
        """Fields of an Order. by: who asks."""
        try:
            run_at = None if self.run_at is None else self.run_at.astimezone(UTC)
        except (OverflowError, ValueError) as error:
            raise ConfigInvalid("run_at", "it is too far away.") from error
        return {
            "priority": self.priority,
            "run_at": run_at,
            "timeout_seconds": self.timeout_seconds,
            "max_attempts": self.max_attempts,
            "submitted_by": by,
        }


class Sized(Terms):
    """And what a job takes of a worker; null for as much as its kind does."""

    cpus: Amount | None = None
    gpus: Amount | None = Field(default=None, description="0.5 is half of one.")

    def order(self, by: str) -> dict[str, Any]:
        return super().order(by) | {"cpus": self.cpus, "gpus": self.gpus}


class Training(Sized):
    """How a training runs. Where strategy is null, it is chosen where it runs."""

    recipe: Facts = Field(default={}, description="steps, batch, seed …, as task add --set takes them")
    strategy: Literal["sequential", "co-trained", "parallel", "data-parallel"] | None = None
    workers: Annotated[int, Field(ge=1, le=10_000)] = 1
    memory_bytes: Annotated[int, Field(ge=0, lt=2**62)] | None = None

    def order(self, by: str) -> dict[str, Any]:
        more = ("strategy", "workers", "memory_bytes")
        return super().order(by) | {name: getattr(self, name) for name in more}

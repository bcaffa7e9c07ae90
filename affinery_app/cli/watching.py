"""Jobs as they move: bars on a terminal, a line a change elsewhere, one JSON object a line for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from affinery_app.cli.output import printable, say
from affinery_app.cli.standing import progress, standing

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from orchestration.jobs import JobRecord


def follow(
    look: Callable[[Sequence[str]], list[JobRecord]],
    job_ids: Sequence[str],
    every_seconds: float,
    as_json: bool,
) -> bool:
    """Shows these jobs until all are over. look: how they stand now. → whether all are done"""
    from orchestration.jobs import LIVE

    if not job_ids:
        say("Nothing waits and nothing runs.")
        return True
    view: Lines = Lines(as_json) if as_json or not sys.stdout.isatty() else Bars()
    with view:
        while True:
            known = look(job_ids)
            for job in known:
                view.show(job)
            if all(job.state not in LIVE for job in known):
                return all(job.state == "done" for job in known)
            time.sleep(every_seconds)


@dataclass
class Pace:
    """How fast a job goes, from what was seen of it. A step back, as of a new attempt, begins anew."""

    seen: tuple[float, int] | None = None
    last: tuple[float, int] | None = None

    def seconds_left(self, job: JobRecord, now: float) -> float | None:
        """None where it does not run, or too little was seen."""
        at = job.progress or {}
        step, of = at.get("step"), at.get("of")
        if job.state != "running" or step is None or not of:
            self.seen = None
            return None
        if self.seen is None or self.last is None or step < self.last[1]:
            self.seen = self.last = (now, step)
        elif step > self.last[1]:
            self.last = (now, step)
        (began, first), (until, reached) = self.seen, self.last
        if reached == first:
            return None
        seconds = float(of - reached) * (until - began) / (reached - first)
        return max(seconds - (now - until), 0.0)


def losses(job: JobRecord) -> str:
    """Its last loss, by task where there are several."""
    found: dict[str, float] = (job.progress or {}).get("losses") or {}
    if len(found) == 1:
        return f"loss {next(iter(found.values())):.4f}"
    return "  ".join(f"{printable(task)} {loss:.4f}" for task, loss in found.items())


def left(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min left"
    return f"{minutes} min {rest:02} s left" if minutes else f"{rest} s left"


@dataclass
class Lines:
    """A line where something has changed."""

    as_json: bool
    _told: dict[str, Any] = field(default_factory=dict)
    _paces: dict[str, Pace] = field(default_factory=dict)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, job: JobRecord) -> None:
        seconds = self.pace(job)
        facts = (job.state, job.progress, job.request, job.waits, job.why)
        if self._told.get(job.id) == facts:
            return
        self._told[job.id] = facts
        if self.as_json:
            told = job.in_brief(here=True) | {"seconds_left": None if seconds is None else round(seconds, 1)}
            print(json.dumps(told, ensure_ascii=False), flush=True)
        else:
            parts = (progress(job), losses(job), left(seconds), printable(standing(job)))
            tasks = ", ".join(map(printable, job.tasks)) or job.kind
            said = f"{job.number} {job.id[:8]} {job.state:<9} {tasks}  {'  '.join(filter(None, parts))}"
            print(said.rstrip(), flush=True)

    def pace(self, job: JobRecord) -> float | None:
        """The seconds that it will take still."""
        return self._paces.setdefault(job.id, Pace()).seconds_left(job, time.monotonic())


class Bars(Lines):
    """A bar a job on a terminal."""

    def __init__(self) -> None:
        super().__init__(as_json=False)
        self._bars: Progress = _bars()
        self._entries: dict[str, TaskID] = {}

    def __enter__(self) -> Lines:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, job: JobRecord) -> None:
        if job.id not in self._entries:
            self._entries[job.id] = self._bars.add_task("", total=None, state="", note="")
        at = job.progress or {}
        over = job.state == "done"
        note = printable(job.doing) or "  ".join(filter(None, (losses(job), left(self.pace(job)))))
        self._bars.update(
            self._entries[job.id],
            description=f"{job.number} {' + '.join(map(printable, job.tasks)) or job.kind}",
            state=job.state,
            completed=1 if over and not at.get("of") else at.get("step", 0),
            total=at.get("of") or (1 if over else None),
            note=note or printable(standing(job)),
        )


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    def text(shown: str, **column: Any) -> TextColumn:
        return TextColumn(
            shown, markup=False, table_column=Column(overflow="ellipsis", no_wrap=True, **column)
        )

    return Progress(
        text("{task.description}", max_width=28),
        text("{task.fields[state]}"),
        BarColumn(bar_width=16),
        text("{task.completed:.0f}"),
        text("{task.fields[note]}", ratio=1),
        console=Console(),
        expand=True,
    )

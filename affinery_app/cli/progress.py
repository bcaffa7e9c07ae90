"""Progress as a person wants to see it: bars on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from affinery_app.cli.output import printable, say, short

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from orchestration.certificates import Certificate
    from orchestration.jobs import JobRecord
    from orchestration.ray_train import ProgressLine
    from registry.records import AdapterRecord


SENDING = "sending"
"""What is counted in bytes."""


def bars() -> Progress:
    """Bars on stderr; nothing at all where that is no terminal.

    Results go to stdout when a bar is gone, so nothing is put in its place: colorama, which comes with DVC,
    would keep that, and write to it at the end what then shows as `[0m`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Amount(MofNCompleteColumn):
        """How much of how much, in bytes where that is said."""

        in_bytes = DownloadColumn(binary_units=True)

        def render(self, task: Task) -> Text:
            return self.in_bytes.render(task) if task.fields.get("in_bytes") else super().render(task)

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=console, redirect_stdout=False, disable=not console.is_terminal)


@contextmanager
def stages(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is done with a dataset, one after another."""
    with bars() as progress:
        entries: dict[str, Any] = {}

        def advance(doing: str, done: int, of: int) -> None:
            if doing not in entries:
                entries[doing] = progress.add_task(
                    f"{doing} {printable(name)}", total=of, note="", in_bytes=doing == SENDING
                )
            progress.update(entries[doing], completed=done, total=of)

        yield advance


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """One bar; what it yields takes (done, of)."""
    with bars() as progress:
        entry = progress.add_task(title, total=None, note="")

        def advance(done: int, of: int) -> None:
            progress.update(entry, completed=done, total=of)

        yield advance


def names(job: JobRecord) -> str:
    """What a job is called while it runs: by its tasks, or by its kind."""
    return " + ".join(printable(name) for name in job.tasks) or f"{job.kind} {job.id[:8]}"


UNHARMED = ("queued", "paused")
"""States in which a job that stopped may still be done."""


class Lines:
    """A worker's doings as plain lines, for logs."""

    EVERY_SECONDS = 10.0

    def __init__(self) -> None:
        self.failed_jobs: list[int] = []
        self.published_any = False
        self._last = 0.0

    def started(self, job: JobRecord, resumed_from: int) -> None:
        from_where = f", going on from step {resumed_from}" if resumed_from else ""
        say(f"[{names(job)}] training ({job.strategy}){from_where}")

    def progress(self, job: JobRecord, line: ProgressLine) -> None:
        if time.monotonic() - self._last >= self.EVERY_SECONDS or line.step == line.steps:
            self._last = time.monotonic()
            say(f"[{names(job)}] step {line.step}/{line.steps}  {losses(line)}")

    def stage(self, job: JobRecord, doing: str) -> None:
        say(f"[{names(job)}] {doing}")

    def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None:
        self.published_any = True
        for record in adapters:
            say(f"[{names(job)}] published {record.ref}: {record.parameters:,} parameters{_seen(record)}")
        for text in certificate_lines(certificate):
            say(f"[{names(job)}] {text}")

    def done(self, job: JobRecord, result: dict[str, Any]) -> None:
        facts = ", ".join(f"{name} {printable(short(value))}" for name, value in result.items())
        say(f"[{names(job)}] done{': ' if facts else ''}{facts}")

    def failed(self, job: JobRecord, error: Exception, state: str) -> None:
        if state not in UNHARMED:
            self.failed_jobs.append(job.number)
        if state in ("paused", "cancelled"):
            say(f"[{names(job)}] {state}: {error}")
            return
        then = " It will be tried again." if state == "queued" else ""
        say(f"[{names(job)}] failed: {str(error).removesuffix('.')}.{then}")


class Screen(Lines):
    """The same with a bar a job, where stderr is a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: Progress | None = None
        self._entries: dict[str, TaskID] = {}

    def __enter__(self) -> Screen:
        if sys.stderr.isatty():
            self._bars = bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def started(self, job: JobRecord, resumed_from: int) -> None:
        super().started(job, resumed_from)
        if self._bars is not None:
            self._entries[job.id] = self._bars.add_task(
                names(job), total=job.recipe["steps"], completed=resumed_from, note=""
            )

    def progress(self, job: JobRecord, line: ProgressLine) -> None:
        entry = self._entries.get(job.id)
        if self._bars is None or entry is None:
            super().progress(job, line)
        else:
            self._bars.update(entry, completed=line.step, total=line.steps, note=losses(line))

    def stage(self, job: JobRecord, doing: str) -> None:
        entry = self._entries.get(job.id)
        if self._bars is None or entry is None:
            super().stage(job, doing)
        else:
            self._bars.update(entry, note=doing)

    def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None:
        self._end_bar(job)
        super().published(job, adapters, certificate)

    def done(self, job: JobRecord, result: dict[str, Any]) -> None:
        self._end_bar(job)
        super().done(job, result)

    def failed(self, job: JobRecord, error: Exception, state: str) -> None:
        self._end_bar(job)
        super().failed(job, error, state)

    def _end_bar(self, job: JobRecord) -> None:
        """Takes it away: what came of the job stands above, as a line."""
        entry = self._entries.pop(job.id, None)
        if self._bars is not None and entry is not None:
            self._bars.remove_task(entry)


class JsonLines(Lines):
    """A worker's doings on stdout, one JSON object a line, for programs."""

    def started(self, job: JobRecord, resumed_from: int) -> None:
        self._tell(job, "started", tasks=list(job.tasks), resumed_from=resumed_from)

    def progress(self, job: JobRecord, line: ProgressLine) -> None:
        self._tell(job, "progress", step=line.step, of=line.steps, losses=line.losses)

    def stage(self, job: JobRecord, doing: str) -> None:
        self._tell(job, "stage", doing=doing)

    def published(self, job: JobRecord, adapters: list[AdapterRecord], certificate: Certificate) -> None:
        refs = [record.ref for record in adapters]
        self._tell(job, "published", adapters=refs, certificate=certificate.level)

    def done(self, job: JobRecord, result: dict[str, Any]) -> None:
        self._tell(job, "done", result=result)

    def failed(self, job: JobRecord, error: Exception, state: str) -> None:
        self._tell(job, "failed", error=str(error), state=state)

    def _tell(self, job: JobRecord, event: str, **facts: object) -> None:
        print(json.dumps({"event": event, "job": job.id} | facts, ensure_ascii=False), flush=True)


def losses(line: ProgressLine) -> str:
    return "  ".join(f"{printable(name)} {loss:.4f}" for name, loss in line.losses.items())


def _seen(record: AdapterRecord) -> str:
    from registry.metrics import recognition

    share = recognition(record.metrics).share
    return "" if share is None else f", {share:.1%} of its samples are recognised"


def certificate_lines(certificate: Certificate) -> list[str]:
    """A certificate in words."""
    results = certificate.results
    backbone, null_row = results["backbone"], results["null_row"]
    equal = f"{backbone['tensors']} tensors equal to the bit, {backbone['fingerprint'][:12]}"
    lines = [
        f"certificate ({certificate.level}): nothing older changed",
        f"  backbone {backbone['ref']}: {equal}",
        f"  null row {null_row['index']}: unchanged",
    ]
    replays = {entry["ref"]: entry for entry in results["replay"]}
    for entry in results["adapters"]:
        low, high = entry["class_rows"]
        replayed = replays[entry["ref"]]
        how = (
            "equal to the bit" if replayed["level"] == "bit-exact" else f"within {replayed['difference']:.1e}"
        )
        lines.append(
            f"  {printable(entry['ref'])}: tensors and class rows [{low}, {high}) unchanged; "
            f"golden images drawn again, {how}"
        )
    return lines

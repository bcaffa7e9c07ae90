"""A workspace on this machine, as commands speak to it. What a verb needs is imported by that verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from affinery_app.cli.here_access import Access
from affinery_app.cli.here_labels import Labels
from affinery_app.cli.here_orders import Orders
from affinery_app.cli.job_options import submitter

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from affinery_app.wiring import Workspace
    from orchestration.about import AboutJob
    from orchestration.composing import Sum
    from orchestration.exports import Asked
    from orchestration.jobs import AttemptRecord, JobRecord
    from orchestration.rehearsal import Rehearsal
    from orchestration.scheduling import Scheduled, Wanted
    from registry.about import AboutAdapter
    from registry.graph import Direction, LineageGraph, LineagePage
    from registry.records import (
        AdapterRecord,
        BackboneRecord,
        CompositionRecord,
        DatasetRecord,
        EvaluationRecord,
        EventRecord,
        TaskRecord,
    )
    from registry.retirement import Retirement
    from registry.search import Page

Found = TypeVar("Found")
PREFERRED = ("adapter", "composition", "backbone", "dataset", "task")


class Here(Access, Labels, Orders):
    """One transaction a verb."""

    def __init__(self, space: Workspace) -> None:
        self.space = space

    def backbones(self) -> list[BackboneRecord]:
        from registry import backbones

        return self._read(backbones.list_all)

    def backbone(self, ref: str) -> BackboneRecord:
        from registry import backbones

        return self._read(lambda session: backbones.get(session, ref))

    def add_backbone(
        self,
        name: str,
        file: Path,
        parent: str | None,
        on_note: Callable[[str], None],
        _advance: Callable[[str, int, int], None],
    ) -> tuple[BackboneRecord, int]:
        """→ its record, and its count of parameters. Nothing of it takes steps that could be told."""
        from orchestration.additions import add_backbone

        return add_backbone(self.space.sessions, self.space.store, file, name, on_note, parent)

    def datasets(self) -> list[DatasetRecord]:
        from registry import datasets

        return self._read(datasets.list_all)

    def dataset(self, ref: str) -> DatasetRecord:
        from registry import datasets

        return self._read(lambda session: datasets.get(session, ref))

    def add_dataset(
        self, name: str, source: Path, given: Mapping[str, Any], advance: Callable[[str, int, int], None]
    ) -> tuple[DatasetRecord, list[str]]:
        """given: licence, source, split, skip_bad and the columns of Parquet. → its record, and notes."""
        from orchestration.additions import add_dataset
        from orchestration.datasets.tables import Columns

        options = dict(given)
        columns = Columns(*(options.pop(f"{each}_column") for each in ("image", "label", "text")))
        return add_dataset(
            self.space.sessions,
            self.space.data,
            source,
            name=name,
            columns=columns,
            on_progress=advance,
            **options,
        )

    def adopt_dataset(
        self, name: str, md5: str, remote: str | None, given: Mapping[str, Any]
    ) -> tuple[DatasetRecord, list[str]]:
        """What a DVC remote of the workspace has. given: licence, source, split, skip_bad."""
        from orchestration.additions import adopt_dataset

        return adopt_dataset(self.space.sessions, self.space.data, md5, remote, name=name, **given)

    def tasks(self) -> list[TaskRecord]:
        from registry import tasks

        return self._read(tasks.list_all)

    def task(self, name: str) -> TaskRecord:
        from registry import tasks

        return self._read(lambda session: tasks.get(session, name))

    def schedule(
        self,
        wanted: Sequence[Wanted],
        together: bool,
        on_note: Callable[[str], None],
        rehearsal: Rehearsal | None,
    ) -> list[Scheduled]:
        """All of it, or nothing; with a rehearsal nothing is kept. together: each of them in one job."""
        from orchestration.scheduling import schedule_all

        apart = wanted if together else [one for each in wanted for one in each.apart()]
        return schedule_all(
            self.space.sessions, apart, data=self.space.data, on_note=on_note, rehearse=rehearsal
        )

    def train(
        self,
        names: Sequence[str],
        recipe: Mapping[str, Any],
        older: Sequence[str] | None,
        after: Sequence[str],
        terms: Mapping[str, Any],
    ) -> JobRecord:
        """older: the adapters to begin from; empty for the latest of each, None for none."""
        from orchestration.scheduling import schedule_again

        return schedule_again(
            self.space.sessions, list(names), dict(recipe), older, after=list(after), **terms
        )

    def adapters(self, task: str | None = None, backbone: str | None = None) -> list[AdapterRecord]:
        from registry import adapters

        return self._read(lambda session: adapters.list_all(session, task=task, backbone=backbone))

    def adapter(self, ref: str) -> AboutAdapter:
        from registry import about

        return self._read(lambda session: about.adapter(session, ref))

    def search(self, query: str, before: int | None, limit: int) -> Page:
        from registry import search

        return self._read(lambda session: search.search(session, query, before=before, limit=limit))

    def retire(self, ref: str, reason: str) -> tuple[str, Retirement]:
        """→ which version it was, and since when it is retired"""
        from registry import retirement

        with self.space.sessions.begin() as session:
            record = retirement.retire(session, ref, reason)
            return record.ref, retirement.of(session, [record.node_id])[record.node_id]

    def restore(self, ref: str) -> str:
        from registry import retirement

        with self.space.sessions.begin() as session:
            return retirement.restore(session, ref).ref

    def jobs(
        self,
        states: Sequence[str] = (),
        kinds: Sequence[str] = (),
        task: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> tuple[list[JobRecord], dict[str, str]]:
        """→ the newest first, and by id what keeps some of them from ever being taken"""
        from orchestration import queue
        from orchestration.obstacles import obstacles
        from orchestration.planner import machine
        from registry import tasks

        with self.space.sessions.read() as session:
            named = None if task is None else tasks.get(session, task).name
            found = queue.page(session, before=before, limit=limit, states=states, kinds=kinds, task=named)
            return found, obstacles(session, found, machine())

    def job(self, named: str) -> AboutJob:
        from orchestration import about

        return self._read(lambda session: about.job(session, named))

    def unfinished(self) -> list[JobRecord]:
        from orchestration import queue

        return self._read(queue.unfinished)

    def look(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """How these stand now."""
        from orchestration import queue

        return self._read(lambda session: queue.by_ids(session, job_ids))

    def log(self, job: JobRecord, attempt: AttemptRecord, start: int = 0) -> tuple[bytes, str | None]:
        """→ what an attempt wrote from this byte on, and the file, where there is one"""
        path = self.space.runs / job.id / f"attempt-{attempt.fence}" / "driver.log"
        return (path.read_bytes()[start:], str(path)) if path.exists() else (b"", None)

    def cancel(self, jobs: Sequence[str]) -> list[JobRecord]:
        from orchestration import queue

        return self._each(jobs, lambda session, job: [queue.cancel(session, job, submitter())])

    def pause(self, jobs: Sequence[str]) -> list[JobRecord]:
        from orchestration import queue

        return self._each(jobs, lambda session, job: [queue.pause(session, job, submitter())])

    def resume(self, jobs: Sequence[str]) -> list[JobRecord]:
        from orchestration import queue

        return self._each(jobs, lambda session, job: [queue.resume(session, job, submitter())])

    def retry(self, jobs: Sequence[str], with_waiting: bool) -> list[JobRecord]:
        from orchestration import queue

        return self._each(
            jobs, lambda session, job: queue.retry(session, job, submitter(), with_waiting=with_waiting)
        )

    def prioritise(self, job: str, value: int) -> list[JobRecord]:
        from orchestration import queue

        return self._each(
            [job], lambda session, named: [queue.prioritise(session, named, value, submitter())]
        )

    def lineage(
        self, ref: str, direction: Direction, depth: int | None, roles: Sequence[str] | None, limit: int
    ) -> LineageGraph:
        from registry import lineage

        walk = lineage.descendants if direction == "down" else lineage.ancestors
        with self.space.sessions.read() as session:
            root = lineage.resolve(session, ref, prefer=PREFERRED).node_id
            return walk(session, root, depth=depth, roles=roles, max_nodes=limit)

    def lineage_page(
        self,
        ref: str,
        direction: Direction,
        kinds: Sequence[str] | None,
        roles: Sequence[str] | None,
        after: int,
        limit: int,
    ) -> LineagePage:
        from registry import lineage

        with self.space.sessions.read() as session:
            root = lineage.resolve(session, ref, prefer=PREFERRED).node_id
            return lineage.page(session, root, direction, kinds=kinds, roles=roles, after=after, limit=limit)

    def compose(self, name: str, members: Sequence[str], sums: Sequence[Sum]) -> CompositionRecord:
        """Put adapters together, and tell MLflow."""
        from orchestration.composing import compose_tasks
        from orchestration.tracking import compositions

        record = compose_tasks(self.space.sessions, name, list(members), list(sums))
        compositions.tell(self.space.tracking, self.space.sessions, record)
        return record

    def export(self, asked: Asked, sign: Path | None) -> dict[str, Any]:
        """→ its record, with its path, how much it differs when it is loaded back, and notes"""
        from orchestration import exports

        space = self.space
        record, written = exports.export(space.sessions, space.store, asked, space.exports)
        exports.tell(space.tracking, space.sessions, written)
        if sign is not None:
            from affinery.signing import sign as sign_bundle

            sign_bundle(Path(record.path), sign)
        return record.to_json(here=True) | {"difference": written.difference, "notes": [*written.notes]}

    def evaluations(self, adapter: str) -> list[EvaluationRecord]:
        from registry import evaluations

        return self._read(lambda session: evaluations.list_for(session, adapter))

    def compare(self, left: str, right: str, protocol: str | None) -> dict[str, Any]:
        """Figures of both under one protocol, as `registry.comparison` tells them."""
        from registry import comparison

        return self._read(lambda session: comparison.compare(session, left, right, protocol)).to_json()

    def report(self, task: str, out: Path | None) -> tuple[TaskRecord, dict[str, Any]]:
        """Written below the workspace's reports/ where no file is named. → the task, and what is in it"""
        from affinery import tensor_files
        from affinery_app.report_page import page
        from affinery_app.task_report import gather

        found = gather(self.space, task)
        target = (out or self.space.folder / "reports" / f"{found.task.name}.html").absolute()
        tensor_files.write_whole(target, page(found).encode())
        return found.task, {
            "task": found.task.name,
            "report": str(target),
            "versions": [version.adapter.ref for version in found.versions],
            "protocols": list(found.evaluations),
            "size_bytes": target.stat().st_size,
        }

    def diff(self, left: str, right: str, tensors: bool) -> dict[str, Any]:
        """As `orchestration.differences` tells it."""
        from orchestration.differences import differences

        return differences(self.space.sessions, self.space.store, left, right, tensors=tensors)

    def events(self, after: int, kind: str | None, limit: int) -> list[EventRecord]:
        from registry import events

        return events.follow(self.space.sessions, after, limit=limit, kind=kind)

    def _read(self, find: Callable[[Session], Found]) -> Found:
        with self.space.sessions.read() as session:
            return find(session)

    def _each(self, jobs: Sequence[str], do: Callable[[Session, str], list[JobRecord]]) -> list[JobRecord]:
        """All of them in one transaction, or none."""
        with self.space.sessions.begin() as session:
            return [record for job in jobs for record in do(session, job)]

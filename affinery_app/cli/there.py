"""A service elsewhere, as commands speak to it: the verbs of `Here`, over affinery.Client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery.errors import ConfigInvalid, PlaceInvalid
from affinery_app.cli.output import say
from affinery_app.cli.progress import SENDING
from affinery_app.cli.there_access import Access
from affinery_app.cli.there_labels import Labels
from affinery_app.cli.there_orders import Orders, terms_of
from affinery_app.cli.told import PAGE, Json, job_of, node_of, record_of, records_of, retirement_of
from affinery_app.client.client import path

if TYPE_CHECKING:
    from affinery_app.client import Client
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
        NodeRecord,
        TaskRecord,
    )
    from registry.retirement import Retirement
    from registry.search import Page

MOST_NODES = 5000
FARTHEST = 100


class There(Access, Labels, Orders):
    """A request a verb, or a few. Raises ServiceRefused, as the workspace would, and ServiceUnreachable."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def backbones(self) -> list[BackboneRecord]:
        from registry.records import BackboneRecord

        return records_of(BackboneRecord, self.client.backbones.list(limit=PAGE), "name", "version")

    def backbone(self, ref: str) -> BackboneRecord:
        from registry.records import BackboneRecord

        return record_of(BackboneRecord, self.client.backbones.get(ref))

    def add_backbone(
        self,
        name: str,
        file: Path,
        parent: str | None,
        on_note: Callable[[str], None],
        advance: Callable[[str, int, int], None],
    ) -> tuple[BackboneRecord, int]:
        """Converts it here where that is needed, and sends what is a backbone file; the service checks it."""
        from affinery.backbones.files import inspect_backbone
        from affinery.backbones.imports import as_backbone_file
        from registry import names
        from registry.records import BackboneRecord

        name = names.checked("backbone", name)
        with as_backbone_file(file, on_note) as whole:
            parameters = inspect_backbone(whole).parameters
            told = self.client.backbones.add(name, whole, parent, on_sent=partial(advance, SENDING))
            return record_of(BackboneRecord, told), parameters

    def datasets(self) -> list[DatasetRecord]:
        from registry.records import DatasetRecord

        return records_of(DatasetRecord, self.client.datasets.list(limit=PAGE), "name", "version")

    def dataset(self, ref: str) -> DatasetRecord:
        from registry.records import DatasetRecord

        return record_of(DatasetRecord, self.client.datasets.get(ref))

    def add_dataset(
        self, name: str, source: Path, given: Mapping[str, Any], advance: Callable[[str, int, int], None]
    ) -> tuple[DatasetRecord, list[str]]:
        """Sends the images; the service checks them."""
        from registry.records import DatasetRecord

        options = {option: value for option, value in given.items() if value is not None}
        told = self.client.datasets.add(name, source, on_sent=partial(advance, SENDING), **options)
        return record_of(DatasetRecord, told), list(told["notes"])

    def adopt_dataset(
        self, name: str, md5: str, remote: str | None, given: Mapping[str, Any]
    ) -> tuple[DatasetRecord, list[str]]:
        """The remote is one of the service's."""
        from registry.records import DatasetRecord

        told = self.client.datasets.adopt(
            name, md5, remote, **{k: v for k, v in given.items() if v is not None}
        )
        return record_of(DatasetRecord, told), list(told["notes"])

    def tasks(self) -> list[TaskRecord]:
        from registry.records import TaskRecord

        return records_of(TaskRecord, self.client.tasks.list(limit=PAGE), "node_id")

    def task(self, name: str) -> TaskRecord:
        from registry.records import TaskRecord

        return record_of(TaskRecord, self.client.tasks.get(name))

    def schedule(
        self,
        wanted: Sequence[Wanted],
        together: bool,
        on_note: Callable[[str], None],
        rehearsal: Rehearsal | None,
    ) -> list[Scheduled]:
        """One request. Raises ConfigInvalid for what only a workspace takes."""
        if len(wanted) != 1 or any(isinstance(each, int) for each in wanted[0].after):
            raise ConfigInvalid("--from", "a plan of several jobs is scheduled in a workspace, not by --url.")
        asked = _planned(wanted[0]) | {"together": together}
        if rehearsal is not None:
            told = self.client.ask("POST", "/v1/tasks/estimate", asked)
            rehearsal.jobs, rehearsal.seconds = told["jobs"], told["seconds"]
        else:
            told = self.client.ask("POST", "/v1/tasks", asked)
        for note in told["notes"]:
            on_note(note)
        if rehearsal is not None:
            return []
        from orchestration.scheduling import Scheduled

        return [Scheduled(job_of(each), each["new"]) for each in told["jobs"]]

    def train(
        self,
        names: Sequence[str],
        recipe: Mapping[str, Any],
        older: Sequence[str] | None,
        after: Sequence[str],
        terms: Mapping[str, Any],
    ) -> JobRecord:
        if older:
            raise ConfigInvalid(
                "--begin-from", "a service takes --warm-start alone; name them in a workspace."
            )
        asked = {"tasks": [*names], "recipe": dict(recipe), "warm": older is not None, "after": [*after]}
        return job_of(self.client.jobs.add("train", **asked, **terms_of(terms)))

    def adapters(self, task: str | None = None, backbone: str | None = None) -> list[AdapterRecord]:
        from registry.records import AdapterRecord

        given = {"task": task, "backbone": backbone}
        wanted = " and ".join(f"{name}={value}" for name, value in given.items() if value)
        return records_of(AdapterRecord, self.client.adapters.list(filter=wanted, limit=PAGE), "node_id")

    def adapter(self, ref: str) -> AboutAdapter:
        from registry.about import AboutAdapter
        from registry.records import AdapterRecord, CertificateRecord, EvaluationRecord

        told = self.client.adapters.get(ref)
        return AboutAdapter(
            record=record_of(AdapterRecord, told),
            certificates=[record_of(CertificateRecord, each) for each in told["certificates"]],
            evaluations=[record_of(EvaluationRecord, each) for each in told["evaluations"]],
            aliases=told["aliases"],
            tags=told["tags"],
            note=told["note"],
            retired=None if told["retired"] is None else retirement_of(told),
        )

    def search(self, query: str, before: int | None, limit: int) -> Page:
        from registry.records import AdapterRecord
        from registry.search import Page

        found: list[AdapterRecord] = []
        following = before or 0
        while len(found) < limit:
            bounds: Json = {"after": following, "limit": min(PAGE, limit - len(found))}
            page = self.client.ask("GET", "/v1/adapters", filter=query, **bounds)
            found += [record_of(AdapterRecord, each) for each in page["items"]]
            if page["next"] is None:
                return Page(tuple(found), None)
            following = page["next"]
        return Page(tuple(found), following)

    def retire(self, ref: str, reason: str) -> tuple[str, Retirement]:
        told = self.client.adapters.retire(ref, reason)
        return told["ref"], retirement_of(told)

    def restore(self, ref: str) -> str:
        return str(self.client.adapters.restore(ref)["ref"])

    def jobs(
        self,
        states: Sequence[str] = (),
        kinds: Sequence[str] = (),
        task: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> tuple[list[JobRecord], dict[str, str]]:
        """The obstacles are those on the service's machine."""
        named = None if task is None else self.task(task).name
        query: Json = {"states": [*states], "kinds": [*kinds], "task": named, "limit": min(limit, PAGE)}
        told = list(islice(self.client.pages("/v1/jobs", after=before or 0, **query), limit))
        return [job_of(each) for each in told], {e["id"]: e["obstacle"] for e in told if e["obstacle"]}

    def job(self, named: str) -> AboutJob:
        from orchestration.about import AboutJob
        from orchestration.jobs import AttemptRecord

        told = self.client.jobs.get(named)
        tries = [record_of(AttemptRecord, each) for each in told["tries"]]
        return AboutJob(job_of(told), told["asked"], told["obstacle"], tries)

    def unfinished(self) -> list[JobRecord]:
        from orchestration.jobs import LIVE

        found = self.client.jobs.list(states=[*LIVE], limit=PAGE)
        return sorted(map(job_of, found), key=attrgetter("number"))

    def look(self, job_ids: Sequence[str]) -> list[JobRecord]:
        return [job_of(self.client.jobs.get(each)) for each in job_ids]

    def log(self, job: JobRecord, attempt: AttemptRecord, start: int = 0) -> tuple[bytes, str | None]:
        """The file is the service's own, and is not told. Of what is long, the service tells the last MiB."""
        told = self.client.ask("GET", path("/v1/jobs", job.id, "log"), attempt=attempt.number)
        return str(told["log"]).encode()[max(0, start - int(told["from_byte"])) :], None

    def cancel(self, jobs: Sequence[str]) -> list[JobRecord]:
        return [job_of(self.client.jobs.cancel(each)) for each in jobs]

    def pause(self, jobs: Sequence[str]) -> list[JobRecord]:
        return [job_of(self.client.jobs.pause(each)) for each in jobs]

    def resume(self, jobs: Sequence[str]) -> list[JobRecord]:
        return [job_of(self.client.jobs.resume(each)) for each in jobs]

    def retry(self, jobs: Sequence[str], with_waiting: bool) -> list[JobRecord]:
        """Those that are named are told, and not what waited for them."""
        return [job_of(self.client.jobs.retry(each, with_waiting)) for each in jobs]

    def prioritise(self, job: str, value: int) -> list[JobRecord]:
        return [job_of(self.client.jobs.prioritise(job, value))]

    def lineage(
        self, ref: str, direction: Direction, depth: int | None, roles: Sequence[str] | None, limit: int
    ) -> LineageGraph:
        from registry.graph import EdgeRecord, LineageGraph

        bounds: Json = {"depth": FARTHEST if depth is None else depth, "limit": min(limit, MOST_NODES)}
        place = path("/v1/lineage", ref)
        told = self.client.ask("GET", place, direction=direction, roles=[*(roles or ())], **bounds)
        return LineageGraph(
            told["root"],
            {each["id"]: node_of(each) for each in told["nodes"]},
            tuple(EdgeRecord(**each) for each in told["edges"]),
            told["truncated"],
            {each["id"]: each["made_with"] for each in told["nodes"] if each.get("made_with") is not None},
        )

    def lineage_page(
        self,
        ref: str,
        direction: Direction,
        kinds: Sequence[str] | None,
        roles: Sequence[str] | None,
        after: int,
        limit: int,
    ) -> LineagePage:
        from registry.graph import LineagePage

        query: Json = {"direction": direction, "kinds": [*(kinds or ())], "roles": [*(roles or ())]}
        found: list[NodeRecord] = []
        following: int | None = after
        while following is not None and len(found) < limit:
            bounds: Json = {"after": following, "limit": min(PAGE, limit - len(found))}
            page = self.client.ask("GET", path("/v1/lineage", ref, "nodes"), **query, **bounds)
            found += map(node_of, page["items"])
            following = page["next"]
        return LineagePage(tuple(found), following)

    def compose(self, name: str, members: Sequence[str], sums: Sequence[Sum]) -> CompositionRecord:
        from registry.records import CompositionRecord

        if sums or not members:
            raise ConfigInvalid(
                "compose", "a service composes the tasks that --task names; sums are made here."
            )
        return record_of(CompositionRecord, self.client.compositions.add(name, members))

    def export(self, asked: Asked, sign: Path | None) -> Json:
        """Waits for a worker of the service to write it, and fetches it if `out` says where to."""
        from orchestration.chores import Export, read

        to = None if asked.out is None else asked.out.absolute()
        if sign is not None and to is None:
            raise ConfigInvalid("--sign", "it is signed where it is fetched to: say where with --out.")
        if to is not None and to.exists():
            raise PlaceInvalid("--out", str(to), "is taken: something is there already; choose another", "")
        how: Json = {"task": asked.task, "unverified": asked.unverified, "backbone": asked.backbone}
        chore = read(Export, {"composition": asked.ref, "format": asked.format, **how})
        job = self.put_off(chore, (), {}).job
        say(f"Job {job.number} writes it; waiting. Without this: affinery job watch {job.number}")
        result = self.client.jobs.wait(job.number)["progress"]["result"]
        written = [each for each in self.client.exports.list(limit=PAGE) if _is_of(each, result)][-1]
        if to is not None:
            self.client.exports.download(written["ref"], to)
        if to is not None and sign is not None:
            from affinery.signing import sign as sign_bundle

            sign_bundle(to, sign)
        told = {name: result[name] for name in ("difference", "notes")}
        return written | {"path": None if to is None else str(to)} | told

    def evaluations(self, adapter: str) -> list[EvaluationRecord]:
        from registry.records import EvaluationRecord

        return [record_of(EvaluationRecord, each) for each in self.client.evaluations.list(adapter)]

    def compare(self, left: str, right: str, protocol: str | None) -> Json:
        return self.client.evaluations.compare(left, right, protocol)

    def report(self, task: str, out: Path | None) -> tuple[TaskRecord, Json]:
        """Made by the service, and fetched; below reports/ here where no file is named."""
        from registry import names

        record = self.task(task)
        name = names.checked("task", record.name)
        versions = [each["ref"] for each in self.client.tasks.versions(name)][::-1]
        protocols: dict[str, None] = {}
        for ref in versions:
            last: dict[str, None] = {}
            for each in self.client.evaluations.list(ref):
                last.pop(each["protocol_digest"], None)
                last[each["protocol_digest"]] = None
            protocols |= last
        target = self.client.tasks.report(name, out or Path("reports") / f"{name}.html")
        told = {"task": name, "report": str(target), "versions": versions, "protocols": [*protocols]}
        return record, told | {"size_bytes": target.stat().st_size}

    def diff(self, left: str, right: str, tensors: bool) -> Json:
        return self.client.diff(left, right, tensors)

    def events(self, after: int, kind: str | None, limit: int) -> list[EventRecord]:
        from registry.records import EventRecord

        found = self.client.pages("/v1/events", after=after, kind=kind, limit=min(limit, PAGE))
        return [record_of(EventRecord, each) for each in islice(found, limit)]


def _is_of(record: Json, result: Json) -> bool:
    """Whether an export is what a job wrote."""
    same = ("digest", "composition_id", "format")
    return all(record[name] == result[name] for name in same)


def _planned(wanted: Wanted) -> Json:
    """Tasks and their training as the service is asked for them."""
    from affinery.kind_settings import shared_out
    from orchestration.conditions import one_each

    names, kinds = wanted.names, wanted.kinds
    for what, given in (("--dataset", wanted.sources), ("--kind", kinds if len(kinds) > 1 else names)):
        if len(given) != len(names):
            raise ConfigInvalid(what, f"{len(given)} were named for {len(names)} tasks.")
    several = kinds if len(kinds) > 1 else kinds * len(names)
    configs = wanted.configs or shared_out(list(several), wanted.config)
    conditions = one_each(names, wanted.conditions)
    planned = [
        {"name": name, "dataset": source, "kind": kind, "config": dict(config), "condition": _told(condition)}
        for name, source, kind, config, condition in zip(
            names, wanted.sources, several, configs, conditions, strict=True
        )
    ]
    whole = {"tasks": planned, "backbone": wanted.backbone, "image_size": wanted.image_size}
    how = {"recipe": dict(wanted.recipe), "after": [*wanted.after], "key": wanted.key}
    return whole | how | terms_of(wanted.job)


def _told(condition: Mapping[str, Any] | None) -> Json | None:
    if condition is None:
        return None
    if condition.get("source") == "model":
        raise ConfigInvalid("--condition-model", "a model lies on a machine's disk; name it in a workspace.")
    return {name: condition[name] for name in ("name", "low", "high") if condition.get(name) is not None}

"""A registry as earlier schemas held it, written without today's models."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, MetaData

from registry import evaluations, tasks
from registry.digests import digest_of

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
METRICS = {"digits": {"loss": 0.25}, "faces": {"recognition": {"share": 0.5}, "kid": [1]}}
WHY = "There is nothing at /srv/data."
STATES = {
    "learnt-digits": "done",
    "learnt-faces": "done",
    "failed": "failed",
    "hopeless": "queued",
    "waiting": "queued",
    "held": "running",
}
NEEDS = [("hopeless", "failed"), ("hopeless", "learnt-digits"), ("waiting", "held")]


class Rows:
    """Writes rows of the schema that a database has now, whichever that is."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.noon = NOON.replace(tzinfo=None) if connection.dialect.name == "sqlite" else NOON
        self.metadata = MetaData()
        self.metadata.reflect(connection)

    def put(self, table: str, **values: Any) -> None:
        self.connection.execute(self.metadata.tables[table].insert(), values)

    def node(
        self, number: int, kind: str, parents: dict[str, int], digest: str | None = None, **told: Any
    ) -> None:
        """told: what its event says."""
        own = digest or digest_of_node(number)
        self.put("node", id=number, kind=kind, digest=own, created_at=self.noon)
        self.put("event", at=self.noon, kind=f"{kind}.recorded", subject=number, payload=told)
        for role, parent in parents.items():
            self.put("edge", child=number, parent=parent, role=role, pos=0)

    def count(self, kind: str, name: str) -> None:
        """Gives the next version of a name out."""
        series = self.metadata.tables["series"]
        of_name = (series.c.kind == kind) & (series.c.name == name)
        self.connection.execute(series.update().where(of_name).values(next_version=series.c.next_version + 1))


def digest_of_node(number: int) -> str:
    return f"{number:064x}"


def fill(connection: Connection) -> None:
    """A backbone, two learnt tasks and four that are not, with a job each."""
    rows = Rows(connection)
    metadata, noon, put, node = rows.metadata, rows.noon, rows.put, rows.node
    put("blob", digest="b" * 64, size_bytes=7, created_at=noon)
    datasets = (("dataset", job.removeprefix("learnt-")) for job in STATES)
    for kind, name in (("backbone", "dit"), *datasets):
        put("series", kind=kind, name=name, next_version=2)
    node(1, "backbone", {})
    versioned = {"version": 1, "size_bytes": 7}
    put(
        "backbone",
        node_id=1,
        name="dit",
        blob_digest="b" * 64,
        num_classes=10,
        null_index=10,
        spec={},
        **versioned,
    )
    put("class_block", owner_id=1, backbone_id=1, lo=0, hi=11)
    for place, (job, state) in enumerate(STATES.items()):
        name = job.removeprefix("learnt-")
        dataset, task, run, adapter, proof = (number + 5 * place for number in (2, 3, 4, 5, 6))
        node(dataset, "dataset", {})
        about = {"dvc_md5": "", "dvc_path": "", "image_count": 2, "licence": "", "source": ""}
        put(
            "dataset",
            node_id=dataset,
            name=name,
            classes=["a", "b"],
            class_counts=[1, 1],
            **about,
            **versioned,
        )
        made_of = tasks.identity(name, f"{1:064x}", f"{dataset:064x}", "affiner", {"d": 8}, None)
        node(task, "task", {"backbone": 1, "dataset": dataset}, digest_of(made_of))
        block = {"lo": 11 + 2 * place, "hi": 13 + 2 * place}
        put("class_block", owner_id=task, backbone_id=1, **block)
        learnt = name != job
        part_of = {"backbone_id": 1, "dataset_id": dataset}
        settings = {"kind": "affiner", "config": {"d": 8}}
        counted = {"next_version": 1 + learnt}
        put(
            "task",
            node_id=task,
            name=name,
            classes=["a", "b"],
            **counted,
            **part_of,
            **block,
            **settings,
        )
        put(
            "job",
            id=job,
            kind="train",
            strategy="sequential",
            state="running" if learnt else state,
            priority=place % 3,
            recipe={"steps": place},
            run_at=noon,
            created_at=noon + timedelta(seconds=place),
            fence=1,
            lease_owner="me" if state == "running" else None,
            lease_expires_at=noon if state == "running" else None,
            idempotency_key=None if learnt else f"key {job}",
            error=WHY if state == "failed" else None,
        )
        put("job_task", job_id=job, task_id=task, live=learnt or state in ("queued", "running"))
        outcome = {"done": "done", "failed": "failed"}.get(state)
        why = WHY if state == "failed" else None
        put("attempt", job_id=job, number=1, fence=1, started_at=noon, outcome=outcome, error=why)
        if learnt:
            made = {"environment": {}, "config": {}, "seed": 7, "code_version": "abc"}
            told = {"job": job, "task": digest_of(made_of), "mlflow_run": None}
            started = {"started_at": NOON.isoformat()}
            node(run, "run", {"task": task}, digest_of(told | made | started))
            put("run", node_id=run, job_id=job, task_id=task, started_at=noon, ended_at=noon, **made)
            node(adapter, "adapter", {"task": task, "backbone": 1, "dataset": dataset, "run": run})
            put(
                "adapter",
                node_id=adapter,
                task_id=task,
                run_id=run,
                blob_digest="b" * 64,
                parameters=3,
                provenance={},
                metrics=METRICS[name],
                job_id=job,
                fence=1,
                **versioned,
                **part_of,
                **settings,
            )
            node(
                proof,
                "certificate",
                {"adapter": adapter},
                digest_of({"adapter": f"{adapter:064x}", "level": "unverified", "results": {}}),
            )
            put("certificate", node_id=proof, adapter_id=adapter, level="unverified", results={})
            jobs = metadata.tables["job"]
            connection.execute(jobs.update().where(jobs.c.id == job).values(state=state))
    for job, need in NEEDS:
        put("job_dependency", job_id=job, needs_job_id=need)


def fill_later(connection: Connection, revision: str) -> None:
    """What the schemas after the first one, up to this one, hold beyond it."""
    rows = Rows(connection)
    noon, put = rows.noon, rows.put
    if revision >= "0002":
        put("tag", node_id=5, key="owner", value="ann", changed_at=noon)
        put("note", node_id=5, text="the first of all", changed_at=noon)
        moved = {"task_id": 3, "name": "champion", "backbone_id": 1, "at": noon}
        put("alias_move", number=1, adapter_id=5, gate=None, **moved)
        put("alias_move", number=2, adapter_id=None, gate=None, **moved)
        put("alias_move", number=3, adapter_id=5, gate=[{"metric": "loss", "value": 0.25}], **moved)
    if revision >= "0003":
        put("request", key="k", fingerprint="f" * 64, answer={"id": 1}, at=noon)
    if revision >= "0004":
        kept = {"cron": "0 3 * * *", "timezone": "UTC", "task_ids": [3], "payload": {}, "priority": 0}
        said = {"when_changed": False, "together": False, "paused": True}
        put("schedule", id=1, name="nightly", created_at=noon, next_run_at=noon, **kept, **said)
        put("queue_limit", scope="resource", key="gpus", most=2.0)
    _compose(rows, sealed=revision >= "0008")
    if revision >= "0005":
        _evaluate(rows)
        _succeed(rows)
        for kind, was, name, origin in RENAMINGS:
            put("renaming", kind=kind, origin=origin, was=was, name=name, at=noon)


RENAMINGS = (
    ("task", "digits", "numerals", "digits"),
    ("task", "faces", "heads", "faces"),
    ("task", "heads", "faces", "faces"),  # and back
    ("dataset", "faces", "heads", "faces"),
    ("backbone", "dit", "transformer", "dit"),
    ("composition", "all", "everything", "all"),
)


def _compose(rows: Rows, sealed: bool) -> None:
    """A composition of the first adapter, and its export; sealed: with what its row said in its event."""
    put, node = rows.put, rows.node
    for kind in ("composition", "export"):
        put("series", kind=kind, name="all", next_version=2)
    members = [["digits", 1, digest_of_node(5)]]
    made_of = {"backbone": digest_of_node(1), "mode": "routed", "recipe": {}, "members": members}
    node(40, "composition", {"backbone": 1, "member": 5}, digest_of(made_of))
    said = {"mode": "routed", "recipe": {}, "last_pos": 0}
    put("composition", node_id=40, name="all", version=1, backbone_id=1, **said)
    put("composition_member", composition_id=40, pos=0, adapter_id=5, task_id=3, backbone_id=1)
    values: dict[str, Any] = {"node_id": 41, "composition_id": 40, "version": 1}
    values |= {"format": "bundle", "path": "/all", "size_bytes": 7}
    told = {"row": digest_of([[name, value] for name, value in values.items()])} if sealed else {}
    node(41, "export", {"composition": 40}, **told)
    put("export", name="all", **values)


def _evaluate(rows: Rows) -> None:
    """What was measured of the first adapter."""
    protocol, results = {"samples": 10}, {"kid": {"mean": 0.5}, "images": 10}
    digest = digest_of(evaluations.identity(digest_of_node(5), digest_of_node(2), protocol, results))
    rows.node(42, "evaluation", {"adapter": 5, "reference": 2}, digest)
    told = {"protocol": protocol, "protocol_digest": digest_of(protocol), "results": results}
    rows.put("evaluation", node_id=42, adapter_id=5, dataset_id=2, job_id=None, fence=None, **told)


def _succeed(rows: Rows) -> None:
    """A second version of the backbone and of a dataset, the task's successor there, and its waiting job."""
    put, node = rows.put, rows.node
    rows.count("backbone", "dit")
    node(43, "backbone", {"parent": 1})
    size = {"version": 2, "size_bytes": 7}
    facts = {"blob_digest": "b" * 64, "num_classes": 10, "null_index": 10, "spec": {}}
    put("backbone", node_id=43, name="dit", parent_id=1, **size, **facts)
    put("class_block", owner_id=43, backbone_id=43, lo=0, hi=11)
    rows.count("dataset", "digits")
    node(44, "dataset", {"parent": 2})
    about = {"dvc_md5": "", "dvc_path": "", "image_count": 2, "licence": "", "source": "", **size}
    classes = {"classes": ["a", "b"], "class_counts": [1, 1]}
    put("dataset", node_id=44, name="digits", parent_id=2, **about, **classes)
    followed = tasks.identity("digits", digest_of_node(1), digest_of_node(2), "affiner", {"d": 8}, None)
    parents = (digest_of_node(43), digest_of_node(2), "affiner", {"d": 8}, digest_of(followed))
    digest = digest_of(tasks.identity("digits.dit-2", *parents))
    node(45, "task", {"backbone": 43, "dataset": 2, "predecessor": 3}, digest)
    block = {"lo": 11, "hi": 13}
    put("class_block", owner_id=45, backbone_id=43, **block)
    part_of = {"backbone_id": 43, "dataset_id": 2, "predecessor_id": 3}
    settings = {"kind": "affiner", "config": {"d": 8}, "classes": ["a", "b"]}
    put("task", node_id=45, name="digits.dit-2", next_version=1, **part_of, **block, **settings)
    counts = dict.fromkeys(("waits", "generation", "attempts", "failures", "fence", "priority"), 0)
    job = {"number": 100, "kind": "train", "state": "queued", "payload": {}, "backbone_id": 43} | counts
    when = {"run_at": rows.noon, "created_at": rows.noon}
    put("job", id="again", workers=1, max_attempts=5, **job, **when)
    put("job_task", job_id="again", task_id=45, live=True, dataset_id=44, warm_start_id=5)

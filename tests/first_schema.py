"""A registry as the first schema held it, written without today's models."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, MetaData

from registry import tasks
from registry.digests import digest_of

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
METRICS = {"digits": {"loss": 0.25}, "faces": {"recognition": {"share": 0.5}, "kid": [1]}}
STATES = {
    "learnt-digits": "done",
    "learnt-faces": "done",
    "failed": "failed",
    "hopeless": "queued",
    "waiting": "queued",
    "held": "running",
}
NEEDS = [("hopeless", "failed"), ("hopeless", "learnt-digits"), ("waiting", "held")]


def fill(connection: Connection) -> None:
    """A backbone, two learnt tasks and four that are not, with a job each."""
    naive = connection.dialect.name == "sqlite"
    noon = NOON.replace(tzinfo=None) if naive else NOON
    metadata = MetaData()
    metadata.reflect(connection)

    def put(table: str, **values: Any) -> None:
        connection.execute(metadata.tables[table].insert(), values)

    def node(number: int, kind: str, parents: dict[str, int], digest: str | None = None) -> None:
        put("node", id=number, kind=kind, digest=digest or f"{number:064x}", created_at=noon)
        put("event", at=noon, kind=f"{kind}.recorded", subject=number, payload={})
        for role, parent in parents.items():
            put("edge", child=number, parent=parent, role=role, pos=0)

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
        rows = {"lo": 11 + 2 * place, "hi": 13 + 2 * place}
        put("class_block", owner_id=task, backbone_id=1, **rows)
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
            **rows,
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
        )
        put("job_task", job_id=job, task_id=task, live=learnt or state in ("queued", "running"))
        outcome = {"done": "done", "failed": "failed"}.get(state)
        put("attempt", job_id=job, number=1, fence=1, started_at=noon, outcome=outcome)
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
    noon = NOON.replace(tzinfo=None) if connection.dialect.name == "sqlite" else NOON
    metadata = MetaData()
    metadata.reflect(connection)

    def put(table: str, **values: Any) -> None:
        connection.execute(metadata.tables[table].insert(), values)

    if revision >= "0002":
        put("tag", node_id=5, key="owner", value="ann", changed_at=noon)
        put("note", node_id=5, text="the first of all", changed_at=noon)
        moved = {"task_id": 3, "name": "champion", "backbone_id": 1, "at": noon}
        put("alias_move", number=1, adapter_id=5, gate=None, **moved)
        put("alias_move", number=2, adapter_id=None, gate=None, **moved)
    if revision >= "0003":
        put("request", key="k", fingerprint="f" * 64, answer={"id": 1}, at=noon)
    if revision >= "0004":
        kept = {"cron": "0 3 * * *", "timezone": "UTC", "task_ids": [3], "payload": {}, "priority": 0}
        said = {"when_changed": False, "together": False, "paused": True}
        put("schedule", id=1, name="nightly", created_at=noon, next_run_at=noon, **kept, **said)
        put("queue_limit", scope="resource", key="gpus", most=2.0)

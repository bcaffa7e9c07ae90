"""Two registries that hold the same: Affinery's and MLflow's, both written in bulk.

Affinery's triggers are away meanwhile: what they would write is written here, and `affinery verify` says
in the end that it is what they would have let through.

Version v of every task is written in one transaction, then version v + 1: so versions, times and ids rise
together, and the newest first is the same order on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from sqlalchemy import Connection, func, insert, select, text, update

from affinery import tensor_files
from registry import backbones, datasets, tasks
from registry.digests import canonical, digest_of
from registry.metrics import numbers
from registry.models import Adapter, Blob, Certificate, Edge, Event, Metric, Node, Tag, Task
from registry.records import BackboneRecord, TaskRecord
from registry.session import connect, sessions
from registry.storage.local import LocalStore

START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = {"arch": "dit", "num_classes": 10, "null_index": 10, "config": {"hidden": 4}}
CONFIG = {"rank": 8}
RESULTS = {"imported": True}
PARAMETERS = 12
OWNERS, STAGES, BATCH = 100, ("trial", "candidate", "approved", "shelved"), 20


@dataclass(frozen=True)
class Size:
    """How many tasks (registered models) there are, and versions of each. sampled: tasks with real files."""

    tasks: int
    versions: int
    sampled: int = 5

    @property
    def total(self) -> int:
        return self.tasks * self.versions


@dataclass(frozen=True)
class Version:
    """One version, as both registries hold it. place counts from 0, the oldest first."""

    place: int
    task: str
    version: int

    @classmethod
    def at(cls, place: int, size: Size) -> Version:
        return cls(place, name_of(place % size.tasks), 1 + place // size.tasks)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"adapter {self.place}".encode()).hexdigest()

    @property
    def run_id(self) -> str:
        return hashlib.sha256(f"run {self.place}".encode()).hexdigest()[:32]

    @property
    def tags(self) -> dict[str, str]:
        return {
            "owner": f"owner-{self.place % OWNERS}",
            "stage": STAGES[self.place % len(STAGES)],
            "batch": f"b{self.place // BATCH}",
        }

    @property
    def metrics(self) -> dict[str, Any]:
        return {
            "kid": round(0.001 * (self.place % 997), 6),
            "recognition": {"share": (self.place % 101) / 101},
        }

    @property
    def at_time(self) -> datetime:
        return START + timedelta(seconds=self.place)


def name_of(number: int) -> str:
    return f"task-{number}"


def adapter_content(task: TaskRecord, backbone: BackboneRecord, seed: float = 1.0) -> bytes:
    """The file of an adapter of this task, of the smallest kind."""
    meta = {
        "task": task.name,
        "kind": task.kind,
        "config": task.config,
        "backbone": backbone.digest,
        "null_index": backbone.null_index,
        "block": list(task.block),
        "class_names": list(task.classes),
        "layout": "append",
    }
    rows = {"class_rows": np.full((len(task.classes), 4), seed, np.float32)}
    return save(rows, metadata={"affinery.adapter": canonical(meta).decode()})


# --- Affinery --------------------------------------------------------------------------------------


def fill_ours(url: str, folder: Path, size: Size) -> None:
    """A migrated, empty registry becomes one of size.total adapter versions on one backbone."""
    engine = connect(url)
    store = LocalStore(folder / "blobs")
    with sessions(engine).begin() as session:
        base = _backbone(session, store, folder)
        learnt_from = datasets.register(
            session,
            name="pictures",
            digest=hashlib.sha256(b"pictures").hexdigest(),
            dvc_md5="0123456789abcdef.dir",
            dvc_path="data/pictures",
            size_bytes=500,
            image_count=6,
            classes=["one", "two", "three"],
            class_counts=[2, 2, 2],
            licence="CC0-1.0",
            source="made for benchmarks",
        )
        for number in range(size.tasks):
            tasks.register(
                session,
                name=name_of(number),
                backbone=base.ref,
                dataset=learnt_from.ref,
                kind="affiner",
                config=CONFIG,
            )
        learners = tasks.list_all(session)
    files = {task.name: adapter_content(task, base) for task in learners[: size.sampled]}
    digests = {name: store.put_bytes(content) for name, content in files.items()}
    with engine.connect() as connection, _unguarded(connection):
        for version in range(1, size.versions + 1):
            with connection.begin():
                _wave(connection, size, learners, version, digests, files)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            for table in (Node, Event):
                named = func.pg_get_serial_sequence(table.__tablename__, "id")
                connection.execute(select(func.setval(named, select(func.max(table.id)).scalar_subquery())))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


@contextmanager
def _unguarded(connection: Connection) -> Iterator[None]:
    """Without triggers, which are then put back as they were."""
    if connection.dialect.name == "postgresql":
        with connection.begin():
            connection.execute(text("SET session_replication_role = replica"))
        yield
        with connection.begin():
            connection.execute(text("RESET session_replication_role"))
        return
    with connection.begin():
        made = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
        for each in made:
            connection.exec_driver_sql(f"DROP TRIGGER {each.name}")
    yield
    with connection.begin():
        for each in made:
            connection.exec_driver_sql(each.sql)


def _backbone(session: Any, store: LocalStore, folder: Path) -> BackboneRecord:
    path = folder / "backbone.safetensors"
    path.write_bytes(
        save({"weight": np.ones(4, np.float32)}, metadata={"affinery.backbone": canonical(SPEC).decode()})
    )
    return backbones.register(
        session,
        name="dit",
        fingerprint=tensor_files.fingerprint(path, canonical(SPEC).decode()),
        blob_digest=store.put_file(path),
        size_bytes=path.stat().st_size,
        num_classes=10,
        null_index=10,
        spec=SPEC,
    )


def _wave(
    connection: Connection,
    size: Size,
    learners: list[TaskRecord],
    version: int,
    digests: dict[str, str],
    files: dict[str, bytes],
) -> None:
    """The next version of every task: the rows that `adapters.bring_in` and `tags.put` write."""
    connection.execute(update(Task).values(next_version=Task.next_version + 1))
    first = connection.execute(select(func.max(Node.id))).scalar_one() + 1
    made = [
        (
            first + i,
            first + len(learners) + i,
            learner,
            Version((version - 1) * size.tasks + i, learner.name, version),
        )
        for i, learner in enumerate(learners)
    ]

    # The first version of a sampled task has a real file.
    def file(each: Version) -> str:
        return digests[each.task] if each.version == 1 and each.task in digests else each.digest

    def size_bytes(each: Version) -> int:
        return len(files[each.task]) if each.version == 1 and each.task in files else 1000

    def proof(each: Version) -> str:
        return digest_of({"adapter": each.digest, "level": "unverified", "results": RESULTS})

    def put(table: Any, rows: Iterator[dict[str, Any]]) -> None:
        connection.execute(insert(table), list(rows))

    put(Blob, ({"digest": file(v), "size_bytes": size_bytes(v), "created_at": v.at_time} for *_, v in made))
    put(
        Node,
        ({"id": n, "kind": "adapter", "digest": v.digest, "created_at": v.at_time} for n, _, _, v in made),
    )
    put(
        Node,
        (
            {"id": c, "kind": "certificate", "digest": proof(v), "created_at": v.at_time}
            for _, c, _, v in made
        ),
    )
    put(
        Edge,
        (
            {"child": node, "parent": parent, "role": role, "pos": pos}
            for node, _, task, _ in made
            for pos, (parent, role) in enumerate(
                ((task.backbone_id, "backbone"), (task.dataset_id, "dataset"), (task.node_id, "task"))
            )
        ),
    )
    put(Edge, ({"child": c, "parent": n, "role": "adapter", "pos": 0} for n, c, _, _ in made))
    put(
        Adapter,
        (
            {
                "node_id": node,
                "task_id": task.node_id,
                "backbone_id": task.backbone_id,
                "dataset_id": task.dataset_id,
                "version": each.version,
                "kind": task.kind,
                "blob_digest": file(each),
                "size_bytes": size_bytes(each),
                "parameters": PARAMETERS,
                "config": CONFIG,
                "provenance": RESULTS,
                "metrics": each.metrics,
                "mlflow_run_id": each.run_id,
            }
            for node, _, task, each in made
        ),
    )
    put(
        Certificate,
        ({"node_id": c, "adapter_id": n, "level": "unverified", "results": RESULTS} for n, c, _, _ in made),
    )
    put(
        Tag,
        (
            {"node_id": node, "key": key, "value": value, "changed_at": each.at_time}
            for node, _, _, each in made
            for key, value in each.tags.items()
        ),
    )
    put(
        Metric,
        (
            {"adapter_id": node, "name": name, "value": value}
            for node, _, _, each in made
            for name, value in numbers(each.metrics).items()
        ),
    )
    put(
        Event,
        (
            {
                "at": each.at_time,
                "kind": kind,
                "subject": subject,
                "payload": {"ref": f"{each.task}@{each.version}"},
            }
            for node, proved, _, each in made
            for kind, subject in (
                ("blob.committed", None),
                ("adapter.brought-in", node),
                ("certificate.recorded", proved),
            )
        ),
    )
    put(
        Event,
        (
            {"at": each.at_time, "kind": "tag.set", "subject": node, "payload": {"key": key, "value": value}}
            for node, _, _, each in made
            for key, value in each.tags.items()
        ),
    )


# --- MLflow ----------------------------------------------------------------------------------------


def mlflow_tags(each: Version) -> dict[str, str]:
    """What MLflow's registry has no place for, digest and metrics, stands in tags there."""
    return each.tags | {"digest": each.digest, "metrics": json.dumps(each.metrics)}


def fill_theirs(uri: str, size: Size, wal: bool) -> None:
    """MLflow's registry, made by itself, with the same versions. wal: its file writes ahead, as ours does."""
    from mlflow.store.model_registry.dbmodels.models import (
        SqlModelVersion,
        SqlModelVersionTag,
        SqlRegisteredModel,
    )
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore(uri).engine
    if wal:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    with engine.begin() as connection:
        begun = _millis(START)
        models = [
            {"name": name_of(i), "creation_time": begun, "last_updated_time": begun}
            for i in range(size.tasks)
        ]
        connection.execute(insert(SqlRegisteredModel.__table__), models)
    for wave in range(size.versions):
        places = range(wave * size.tasks, (wave + 1) * size.tasks)
        made = [Version.at(place, size) for place in places]
        with engine.begin() as connection:
            connection.execute(insert(SqlModelVersion.__table__), [_their_row(each) for each in made])
            tags = [
                {"name": each.task, "version": each.version, "key": key, "value": value}
                for each in made
                for key, value in mlflow_tags(each).items()
            ]
            connection.execute(insert(SqlModelVersionTag.__table__), tags)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


def _their_row(each: Version) -> dict[str, Any]:
    at = _millis(each.at_time)
    return {
        "name": each.task,
        "version": each.version,
        "creation_time": at,
        "last_updated_time": at,
        "current_stage": "None",
        "source": f"s3://models/{each.digest}",
        "storage_location": f"s3://models/{each.digest}",
        "run_id": each.run_id,
        "status": "READY",
    }


def _millis(at: datetime) -> int:
    return int(at.timestamp() * 1000)

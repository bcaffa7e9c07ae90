"""Evaluations: what was measured of an adapter against a reference dataset, under a protocol.

A protocol says how something was measured: reference set, extractor, resize, number of samples, sampler,
steps, guidance, seeds. Its digest is carried by every figure, and figures of different digests are never
compared. Of one adapter and one protocol the evaluation recorded last is the one that counts.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from registry import adapters, datasets, events, metrics, nodes, tasks
from registry.digests import digest_of, plain
from registry.errors import NotFound, ProtocolAmbiguous, RecordInvalid, StaleFence
from registry.metrics import spellings
from registry.models import Adapter, Dataset, Evaluation, Figure, Job, Node, Task
from registry.records import AdapterRecord, EvaluationRecord

_PREFIX = frozenset("0123456789abcdef")
_SHORTEST = 6


def record(
    session: Session,
    *,
    adapter: str,
    reference: str,
    protocol: dict[str, Any],
    results: dict[str, Any],
    job_id: str | None = None,
    fence: int | None = None,
) -> EvaluationRecord:
    """Record what was measured. The same of the same adapter, reference and protocol gives what stands.

    reference: the dataset version that it was measured against. results: numbers by name, at most two levels
    deep for those to be searched: {"kid": {"mean": 0.02, "low": 0.01, "high": 0.03}}. job_id and fence, both
    or neither: of the job that measured it; StaleFence where that job was given to another.
    """
    judged, against = adapters.get(session, adapter), datasets.get(session, reference)
    protocol = _object("The evaluation's protocol", protocol)
    results = _object("The evaluation's results", results)
    digest = digest_of(identity(judged.digest, against.digest, protocol, results))
    nodes.hold(session, judged.node_id)  # who measures the same at once waits here
    query = _query().where(Evaluation.adapter_id == judged.node_id, Node.digest == digest)
    same = session.execute(query.order_by(Evaluation.node_id.desc()).limit(1)).first()
    _check_fence(session, job_id, fence, recorded=same is not None)
    if same is not None:
        return _record(same)
    node = nodes.add(
        session, "evaluation", digest, [(judged.node_id, "adapter"), (against.node_id, "reference")]
    )
    session.add(
        Evaluation(
            node_id=node.id,
            adapter_id=judged.node_id,
            dataset_id=against.node_id,
            protocol=protocol,
            protocol_digest=digest_of(protocol),
            results=results,
            job_id=job_id,
            fence=fence,
        )
    )
    session.flush()
    made = by_id(session, node.id)
    happened = {"adapter": made.adapter, "reference": made.reference, "protocol": made.protocol_digest}
    events.append(session, "evaluation.recorded", node.id, happened)
    return made


def identity(
    adapter: str, reference: str, protocol: dict[str, Any], results: dict[str, Any]
) -> dict[str, Any]:
    """What an evaluation's digest is made of: two digests, and what was measured how."""
    return {"adapter": adapter, "reference": reference, "protocol": protocol, "results": results}


def _object(what: str, value: Any) -> dict[str, Any]:
    kept = plain(what, value)
    if not isinstance(kept, dict) or not kept:
        raise RecordInvalid(what, "it is no JSON object, or it says nothing")
    return kept


def _check_fence(session: Session, job_id: str | None, fence: int | None, recorded: bool) -> None:
    if job_id is None and fence is None:
        return
    if job_id is None or fence is None:
        raise RecordInvalid("The evaluation", "a job and its fence go together: give both, or neither")
    # The row lock (PostgreSQL) holds off a new claim of the job until this transaction ends.
    query = select(Job.fence, Job.state).where(Job.id == job_id).with_for_update(key_share=True)
    job = session.execute(query).first()
    if job is None:
        raise NotFound("job", job_id, [])
    if job.fence != fence or (job.state != "running" and not recorded):
        raise StaleFence(job_id, fence, job.fence, job.state)


def by_id(session: Session, node_id: int) -> EvaluationRecord:
    """The evaluation of a node."""
    return _record(session.execute(_query().where(Evaluation.node_id == node_id)).one())


def list_for(session: Session, adapter: str, *, protocol: str | None = None) -> list[EvaluationRecord]:
    """The evaluations of an adapter (under one protocol, its digest or a beginning of it), oldest first."""
    judged = adapters.get(session, adapter)
    query = _query().where(Evaluation.adapter_id == judged.node_id).order_by(Evaluation.node_id)
    if protocol is not None:
        query = query.where(Evaluation.protocol_digest == find_protocol(session, protocol))
    return [_record(row) for row in session.execute(query)]


def latest(session: Session, adapter: str, protocol: str) -> EvaluationRecord | None:
    """The evaluation of an adapter under a protocol that counts: the one recorded last."""
    found = list_for(session, adapter, protocol=protocol)
    return found[-1] if found else None


def latest_of(session: Session, adapter_id: int) -> list[EvaluationRecord]:
    """The evaluations of an adapter that count: of each protocol the last, as they were recorded."""
    last = (
        select(func.max(Evaluation.node_id))
        .where(Evaluation.adapter_id == adapter_id)
        .group_by(Evaluation.protocol_digest)
    )
    query = _query().where(Evaluation.node_id.in_(last)).order_by(Evaluation.node_id)
    return [_record(row) for row in session.execute(query)]


def list_all(session: Session, *, task: str | None = None) -> list[EvaluationRecord]:
    """Every evaluation (of a task's adapters), oldest first."""
    query = _query().order_by(Evaluation.node_id)
    if task is not None:
        query = query.where(Adapter.task_id == tasks.get(session, task).node_id)
    return [_record(row) for row in session.execute(query)]


def protocols(session: Session) -> list[str]:
    """The digests of every protocol under which something was measured."""
    found: list[str] = []
    # From one to the next through the index: there are few, however many evaluations there are.
    following = select(func.min(Evaluation.protocol_digest))
    digest = session.scalar(following)
    while digest is not None:
        found.append(digest)
        digest = session.scalar(following.where(Evaluation.protocol_digest > digest))
    return found


def find_protocol(session: Session, prefix: str) -> str:
    """The protocol whose digest begins so: six digits or more. NotFound, or ProtocolAmbiguous for several."""
    wanted = prefix.strip().lower()
    known = protocols(session)
    if len(wanted) < _SHORTEST or not _PREFIX.issuperset(wanted):
        raise NotFound("protocol", prefix, [each[:12] for each in known])
    found = [each for each in known if each.startswith(wanted)]
    if not found:
        raise NotFound("protocol", prefix, [each[:12] for each in known])
    if len(found) > 1:
        raise ProtocolAmbiguous(prefix, found)
    return found[0]


def measuring(session: Session, name: str) -> list[str]:
    """The digests of the protocols under which something of this name was measured."""
    return [
        digest
        for digest in protocols(session)
        if session.execute(
            select(Figure.evaluation_id)
            .join(Evaluation, Evaluation.node_id == Figure.evaluation_id)
            .where(Evaluation.protocol_digest == digest, Figure.name.in_(spellings(name)))
            .limit(1)
        ).first()
        is not None
    ]


def figure(session: Session, adapter: AdapterRecord, name: str) -> tuple[float | None, str | None]:
    """What was measured of an adapter by this name, and under which protocol (None: by its training).

    `name@digits` is of its last evaluation under the protocol whose digest begins so; a name alone is the
    training's own figure, else that of its evaluations. ProtocolAmbiguous where those are of several.
    """
    name, at, prefix = name.partition("@")
    if not at and (own := metrics.find(adapter.metrics, name)) is not None:
        return own, None
    wanted = find_protocol(session, prefix) if at else None
    found = {
        each.protocol_digest: number
        for each in latest_of(session, adapter.node_id)
        if wanted in (None, each.protocol_digest) and (number := metrics.find(each.results, name)) is not None
    }
    if len(found) > 1:
        raise ProtocolAmbiguous(name, sorted(found))
    return next(((number, digest) for digest, number in found.items()), (None, wanted))


_Row = Row[Evaluation, Node, str, int, str, int]


def _query() -> Select[Evaluation, Node, str, int, str, int]:
    return (
        select(Evaluation, Node, Task.name, Adapter.version, Dataset.name, Dataset.version)
        .join(Node, Node.id == Evaluation.node_id)
        .join(Adapter, Adapter.node_id == Evaluation.adapter_id)
        .join(Task, Task.node_id == Adapter.task_id)
        .join(Dataset, Dataset.node_id == Evaluation.dataset_id)
    )


def _record(row: _Row) -> EvaluationRecord:
    evaluation, node, task, version, dataset, dataset_version = row
    return EvaluationRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        adapter=f"{task}@{version}",
        adapter_id=evaluation.adapter_id,
        reference=f"{dataset}@{dataset_version}",
        reference_id=evaluation.dataset_id,
        protocol=evaluation.protocol,
        protocol_digest=evaluation.protocol_digest,
        results=evaluation.results,
        job_id=evaluation.job_id,
        fence=evaluation.fence,
    )

"""Searches of adapter versions: a filter, page by page, the newest first.

    task=digits            version>=2          kind=affiner        backbone=dit@1       dataset=digits@1
    tag.owner=ann          metric.kid<0.02     alias=champion      certificate=bit-exact
    created>=2026-01-31    parameters<200000   size<=1000000       state=usable (or retired)
    metric.kid@3f9a2c<0.02 by its last evaluation under the protocol whose digest begins so
    below=REF              made, in any number of steps, from what REF means; above=REF the other way
    run=…                  an MLflow run       job=…               a job's id

Terms are joined by `and`, `or`, `not` and brackets (registry/filters.py). Values only ever travel as bound
parameters. A page is asked for with the id of the last one seen: what is published meanwhile shifts nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, literal, not_, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from affinery.errors import near
from registry import adapters, below, evaluations, filters, refs
from registry.errors import FilterInvalid
from registry.filters import All, Filter, Not, Some, Term
from registry.lineage import reach
from registry.metrics import HEADLINES, number, spellings
from registry.models import (
    Adapter,
    AliasMove,
    Certificate,
    Evaluation,
    Event,
    Figure,
    Metric,
    Node,
    Tag,
)
from registry.records import AdapterRecord, NodeRecord

_Condition = ColumnElement[bool]
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda column, value: column == value,
    "!=": lambda column, value: column != value,
    ">=": lambda column, value: column >= value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    "<": lambda column, value: column < value,
}
_LARGEST = 2**63 - 1
_FEW = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Adapter versions, the newest first; next asks for the older ones, None at the end."""

    adapters: tuple[AdapterRecord, ...]
    next: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"adapters": [record.to_json() for record in self.adapters], "next": self.next}


def search(session: Session, text: str = "", *, before: int | None = None, limit: int = 50) -> Page:
    """The adapter versions for which the filter holds (all, where it is empty), recorded before this id.

    Raises FilterInvalid, and what references raise.
    """
    query = select(Adapter.node_id).order_by(Adapter.node_id.desc()).limit(limit + 1)
    if text.strip():
        query = query.where(_condition(session, text, filters.parse(text)))
    if before is not None:
        query = query.where(Adapter.node_id < before)
    ids = list(session.scalars(query))
    shown = ids[:limit]
    return Page(tuple(adapters.by_ids(session, shown)), shown[-1] if len(ids) > limit and shown else None)


def _condition(session: Session, text: str, part: Filter) -> _Condition:
    match part:
        case Not(inner):
            return not_(_condition(session, text, inner))
        case All(parts):
            return and_(*(_condition(session, text, each) for each in parts))
        case Some(parts):
            return or_(*(_condition(session, text, each) for each in parts))
        case Term():
            return _Reading(session, text, part).condition()


class _Reading:
    """One term of a filter, on its way into SQL."""

    def __init__(self, session: Session, text: str, term: Term) -> None:
        self.session = session
        self.text = text
        self.term = term

    def condition(self) -> _Condition:
        family, dot, name = self.term.field.partition(".")
        if dot and name and family in ("tag", "metric"):
            return self.tag(name) if family == "tag" else self.metric(name)
        if self.term.field not in _FIELDS:
            # No field has a dot in its name; a metric may be called like none of them.
            if (dot and name) or self.was_measured(self.term.field):
                return self.metric(self.term.field)
            known = [*_FIELDS, "tag.KEY", "metric.NAME"]
            hint = near(self.term.field, known)
            raise self.wrong(f"there is no field {self.term.field[:60]!r}.{hint} Known: {', '.join(known)}")
        return _FIELDS[self.term.field](self)

    def wrong(self, reason: str) -> FilterInvalid:
        return FilterInvalid(self.text, self.term.position, reason)

    # --- values ------------------------------------------------------------------------------------

    def equal(self) -> bool:
        """Whether the operator is = (True) or != (False); others make no sense here."""
        if self.term.operator not in ("=", "!="):
            raise self.wrong(f"{self.term.field} is compared with = or != only")
        return self.term.operator == "="

    def words(self) -> str:
        value = unicodedata.normalize("NFC", self.term.value)
        if any(unicodedata.category(each) in ("Cc", "Cs") for each in value):
            raise self.wrong("its value holds a control character")
        return value

    def number(self) -> float:
        value = number(self.term.value)
        if value is None:
            raise self.wrong(
                f"{self.term.field} is compared with a number, not with {self.term.value[:40]!r}"
            )
        return value

    def whole(self) -> int:
        digits = self.term.value
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= _LARGEST):
            raise self.wrong(f"{self.term.field} is compared with a whole number, not with {digits[:40]!r}")
        return int(digits)

    def instant(self) -> datetime:
        try:
            found = datetime.fromisoformat(self.term.value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            shown = self.term.value[:40]
            raise self.wrong(f"{shown!r} is no date such as 2026-01-31 or 2026-01-31T12:00") from error

    def meant(self) -> NodeRecord:
        """What the value refers to."""
        return refs.resolve(self.session, self.term.value, prefer=("dataset", "backbone", "adapter"))

    # --- fields ------------------------------------------------------------------------------------

    def column(self, column: Any, value: Any) -> _Condition:
        found: _Condition = _ORDER[self.term.operator](column, value)
        return found

    def among(self, ids: Any) -> _Condition:
        found: _Condition = Adapter.node_id.in_(ids)
        return found if self.equal() else not_(found)

    def either(
        self, owner: InstrumentedAttribute[int], *conditions: _Condition, further: Sequence[_Condition] = ()
    ) -> _Condition:
        """Whether the adapter has such a row, asked the quicker way.

        Few such rows are gathered first; of many, each adapter is asked for its own as the newest are walked.
        further: conditions that cost too much to be counted with.
        """
        first = select(literal(1)).where(*conditions).limit(_FEW + 1)
        rows = select(owner).where(*conditions, *further)
        counted = select(func.count()).select_from(first.subquery())
        if self.session.scalars(counted).one() <= _FEW:
            return Adapter.node_id.in_(rows)
        return rows.where(owner == Adapter.node_id).correlate(Adapter).exists()

    def tag(self, key: str) -> _Condition:
        value = self.words()
        found = self.either(Tag.node_id, Tag.key == key, Tag.value == value)
        return found if self.equal() else not_(found)

    def metric(self, field: str) -> _Condition:
        """A name alone is the training's own figure, or that of the one protocol that measured it."""
        name, at, prefix = field.partition("@")
        if at:
            return self.evaluated(name, evaluations.find_protocol(self.session, prefix))
        if own := self.own(name):
            return self.measured(Metric.adapter_id, Metric.adapter_id, Metric, own)
        found = evaluations.measuring(self.session, name)
        if len(found) > 1:
            known = ", ".join(f"{name}@{digest[:12]}" for digest in found)
            raise self.wrong(f"figures of different protocols are never compared: write one of {known}")
        if found:
            return self.evaluated(name, found[0])
        return self.measured(Metric.adapter_id, Metric.adapter_id, Metric, (name,))

    def was_measured(self, field: str) -> bool:
        name, at, _ = field.partition("@")
        return bool(at) or bool(self.own(name)) or bool(evaluations.measuring(self.session, name))

    def own(self, name: str) -> tuple[str, ...]:
        """The spellings of it by which training itself measured some adapter, the one that is meant first."""
        metric, names = Metric.rows(), _meant(name)
        found = select(*(exists().where(metric.c.name == each) for each in names))
        return tuple(
            each for each, there in zip(names, self.session.execute(found).one(), strict=True) if there
        )

    def evaluated(self, name: str, protocol: str) -> _Condition:
        """By the evaluation of each adapter that was recorded last under this protocol."""
        newer = aliased(Evaluation)
        superseded = select(newer.node_id).where(
            newer.adapter_id == Evaluation.adapter_id,
            newer.protocol_digest == protocol,
            newer.node_id > Evaluation.node_id,
        )
        this = (
            Evaluation.node_id == Figure.evaluation_id,
            Evaluation.protocol_digest == protocol,
            not_(superseded.exists()),
        )
        return self.measured(Evaluation.adapter_id, Figure.evaluation_id, Figure, _meant(name), *this)

    def measured(
        self,
        adapter: InstrumentedAttribute[int],
        owner: InstrumentedAttribute[int],
        table: type[Metric] | type[Figure],
        names: Sequence[str],
        *conditions: _Condition,
    ) -> _Condition:
        """The first of these spellings that its owner has; who has none of them has no such metric."""
        bound = self.column(table.value, self.number())
        if len(names) == 1:
            return self.either(adapter, table.name == names[0], bound, further=conditions)
        ranks = {each: rank for rank, each in enumerate(names)}
        other = aliased(table)
        better = select(other.name).where(
            getattr(other, owner.key) == owner,
            other.name.in_(names),
            case(ranks, value=other.name) < case(ranks, value=table.name),
        )
        further = (not_(better.exists()), *conditions)
        return self.either(adapter, table.name.in_(names), bound, further=further)

    def task(self) -> _Condition:
        return self.column_in(Adapter.task_id, refs.find(self.session, "task", self.term.value))

    def backbone(self) -> _Condition:
        return self.column_in(Adapter.backbone_id, refs.find(self.session, "backbone", self.term.value))

    def dataset(self) -> _Condition:
        return self.column_in(Adapter.dataset_id, refs.find(self.session, "dataset", self.term.value))

    def column_in(self, column: Any, value: int | str) -> _Condition:
        found: _Condition = column == value if self.equal() else column.is_distinct_from(value)
        return found

    def alias(self) -> _Condition:
        last = select(func.max(AliasMove.number)).where(
            AliasMove.task_id == Adapter.task_id, AliasMove.name == self.words()
        )
        points = select(AliasMove.adapter_id).where(
            AliasMove.adapter_id == Adapter.node_id,
            AliasMove.name == self.words(),
            AliasMove.number == last.correlate(Adapter).scalar_subquery(),
        )
        found = points.correlate(Adapter).exists()
        return found if self.equal() else not_(found)

    def certificate(self) -> _Condition:
        return self.among(select(Certificate.adapter_id).where(Certificate.level == self.words()))

    def created(self) -> _Condition:
        at = select(Node.id).where(Node.id == Adapter.node_id, self.column(Node.created_at, self.instant()))
        return at.correlate(Adapter).exists()

    def state(self) -> _Condition:
        if self.term.value not in ("usable", "retired"):
            raise self.wrong(f"state is usable or retired, not {self.term.value[:40]!r}")
        words = (refs.RETIRED, refs.RESTORED)
        last = select(func.max(Event.id)).where(Event.kind.in_(words)).group_by(Event.subject)
        retired = select(Event.subject).where(Event.id.in_(last), Event.kind == refs.RETIRED)
        wanted = self.equal() == (self.term.value == "retired")
        return Adapter.node_id.in_(retired) if wanted else Adapter.node_id.not_in(retired)

    def below(self) -> _Condition:
        node = self.meant()
        found = below.made_from(self.session, node) if node.kind in below.KINDS else None
        if found is None:
            return self.among(reach(node.node_id, down=True))
        return found if self.equal() else not_(found)

    def above(self) -> _Condition:
        return self.among(reach(self.meant().node_id, down=False))


def _meant(name: str) -> tuple[str, ...]:
    """The recorded names that this one may stand for; one that is written in full is itself."""
    return (name,) if name.rpartition(".")[2] in HEADLINES else spellings(name)


_FIELDS: dict[str, Callable[[_Reading], _Condition]] = {
    "kind": lambda term: term.column_in(Adapter.kind, term.words()),
    "task": _Reading.task,
    "backbone": _Reading.backbone,
    "dataset": _Reading.dataset,
    "version": lambda term: term.column(Adapter.version, term.whole()),
    "parameters": lambda term: term.column(Adapter.parameters, term.whole()),
    "size": lambda term: term.column(Adapter.size_bytes, term.whole()),
    "created": _Reading.created,
    "state": _Reading.state,
    "alias": _Reading.alias,
    "certificate": _Reading.certificate,
    "run": lambda term: term.column_in(Adapter.mlflow_run_id, term.words()),
    "job": lambda term: term.column_in(Adapter.job_id, term.words()),
    "below": _Reading.below,
    "above": _Reading.above,
}

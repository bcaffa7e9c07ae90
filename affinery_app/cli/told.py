"""What a service told, as the records that a workspace has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    from orchestration.jobs import JobRecord
    from registry.records import NodeRecord
    from registry.retirement import Retirement

Json = dict[str, Any]
PAGE = 500


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=_Dataclass)


def retirement_of(told: Json) -> Retirement:
    from registry.retirement import Retirement

    return Retirement(datetime.fromisoformat(told["retired"]["since"]), told["retired"]["reason"])


def node_of(told: Json) -> NodeRecord:
    from registry.records import NodeRecord

    return record_of(NodeRecord, told | {"node_id": told["id"]})


def job_of(told: Json) -> JobRecord:
    from orchestration.jobs import JobRecord

    return record_of(JobRecord, told)


def records_of(kind: type[Record], told: Iterable[Json], *by: str) -> list[Record]:
    return sorted((record_of(kind, each) for each in told), key=attrgetter(*by))


def record_of(kind: type[Record], told: Json) -> Record:
    """What to_json made of a record, a record again. What this version does not know of is passed over."""
    own = getattr(kind, "HERE", ())
    known = {each.name: str(each.type) for each in fields(kind) if each.name not in own}
    return kind(**{name: _value(declared, told[name]) for name, declared in known.items()})


def _value(declared: str, told: Any) -> Any:
    if declared.startswith("datetime") and isinstance(told, str):
        return datetime.fromisoformat(told)
    return tuple(told) if declared.startswith("tuple") and isinstance(told, list) else told

"""The records of the registry as OpenAPI knows them: made of the records themselves, so that they agree."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, create_model

from registry.names import KINDS

DEEPEST = 20
_Item = TypeVar("_Item")


@cache
def shape(record: type[Any], **further: Any) -> type[BaseModel]:
    """The model of what a record's to_json gives; further fields by name and type."""
    name = record.__name__.removesuffix("Record")
    hints = get_type_hints(record)
    names = [field.name for field in fields(record) if field.name not in getattr(record, "HERE", ())]
    given: dict[str, Any] = {name: (_told(hints[name]), ...) for name in names}
    if hasattr(record, "ref"):
        given = {"ref": (str, Field(description="How a person names it.")), **given}
    for extra, kind in further.items():
        given[extra] = (kind, ...)
    made: type[BaseModel] = create_model(name, __doc__=record.__doc__, **given)
    return made


def _told(hint: Any) -> Any:
    """A pair as a list of two: generators of clients know no `prefixItems`, which a tuple becomes."""
    kinds = get_args(hint) if get_origin(hint) is tuple else ()
    if len(set(kinds)) != 1 or Ellipsis in kinds:
        return hint
    return Annotated[list[kinds[0]], Field(min_length=len(kinds), max_length=len(kinds))]  # type: ignore[valid-type]


class Sent(BaseModel):
    """What a request may bring: these fields only, each of its own kind of JSON's ("5" is no number)."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Page(BaseModel, Generic[_Item]):
    """Some of a list; `next` is what to ask for `after`, null at the end."""

    items: list[_Item]
    next: int | None


def pages(item: type[BaseModel]) -> type[BaseModel]:
    """The model of a page of these."""
    return Page[item]  # type: ignore[valid-type]


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    ring: list[Any] = [value]
    for _ in range(DEEPEST):
        inner = [
            each.values() if isinstance(each, dict) else each
            for each in ring
            if isinstance(each, (dict, list))
        ]
        ring = [each for held in inner for each in held]
        if not ring:
            return value
    raise ValueError(f"it is nested deeper than {DEEPEST}")


_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
Word = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NO_CONTROL)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Facts = Annotated[dict[str, Any], AfterValidator(_shallow)]
TagKey = Annotated[str, StringConstraints(max_length=64)]
TagValue = Annotated[str, StringConstraints(max_length=500)]
Tags = dict[TagKey, TagValue]
Kind = Annotated[str, StringConstraints(pattern=f"^({'|'.join(KINDS)})$")]

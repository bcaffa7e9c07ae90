"""Whether a task may join a composed model: its record and its tensors must fit, or nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affinery.adapters import kind as kind_named
from affinery.adapters.contract import Config, Kind, check_parts
from affinery.adapters.files import Adapter, AdapterMeta
from affinery.errors import AdapterBackboneMismatch, AdapterFileInvalid, ConfigInvalid
from affinery.names import can_be_shown

if TYPE_CHECKING:
    from affinery.composed import ComposedModel

LAST_ROW = 2**62  # rows are looked up by 64-bit numbers


def admitted(model: ComposedModel, meta: AdapterMeta) -> tuple[Kind[Any], Config]:
    """A task's kind and settings, if its record fits the model.

    Raises AdapterBackboneMismatch, UnknownName or ConfigInvalid.
    """
    if not meta.task or not can_be_shown(meta.task):
        raise ConfigInvalid("task", f"{meta.task!r} is no name.")
    if meta.backbone != model.fingerprint:
        raise AdapterBackboneMismatch(meta.task, model.fingerprint, meta.backbone)
    if meta.task in model.slots:
        raise ConfigInvalid("task", f"{meta.task!r} is in this model already; remove it or name another.")
    low, high = meta.block
    fits = model.null_row < low < high <= LAST_ROW and high - low == len(meta.class_names)
    if not fits or meta.null_index != model.null_row:
        raise ConfigInvalid(
            "block",
            f"[{low}, {high}) are not {len(meta.class_names)} rows after the null row {model.null_row}.",
        )
    for other in model.slots.values():
        if low < other.meta.block[1] and other.meta.block[0] < high:
            raise ConfigInvalid("block", f"{meta.task!r} and {other.meta.task!r} claim the same class rows.")
    if meta.image_size is not None:
        model.backbone.hint_shape(meta.image_size)  # raises where the architecture cannot take it
    model.stem(meta, "meta")  # raises where the condition cannot enter
    kind = kind_named(meta.kind)
    return kind, kind.config(meta.config)


def check_tensors(model: ComposedModel, adapter: Adapter, kind: Kind[Any], config: Config) -> None:
    """Every module that the kind changes is given, each part in its shape, and nothing else.

    Raises AdapterFileInvalid, or ConfigInvalid where the kind has nothing to adapt.
    """
    origin = f"the adapter of {adapter.meta.task!r}"
    for name in adapter.tensors:
        if not adapter.meta.may_hold(name):
            raise AdapterFileInvalid(origin, f"tensor {name!r} belongs to no layer.")
    stem = model.stem(adapter.meta, "meta")
    if stem is not None:
        try:
            stem.check(adapter.stem())
        except ValueError as error:
            raise AdapterFileInvalid(origin, f"its condition stem does not fit: {error}.") from error
    shape = [len(adapter.meta.class_names), model.backbone.class_table.shape[1]]
    rows = adapter.tensors.get("class_rows")
    if rows is None or list(rows.shape) != shape:
        raise AdapterFileInvalid(origin, f"its class rows are not {shape[0]} × {shape[1]}.")
    given, names = adapter.layers(), kind.choose(model.sites, config)
    if given.keys() != set(names):
        odd = sorted(given.keys() ^ set(names))
        raise AdapterFileInvalid(
            origin, f"layer {odd[0]!r} is on one side only: it was made for other layers."
        )
    for name in names:
        try:
            check_parts(kind.parts(model.sites[name], config), given[name])
        except ValueError as error:
            raise AdapterFileInvalid(origin, f"layer {name!r}: {error}.") from error

"""Adapter kinds, one file each: a file here that defines `KIND` is a kind of that file's name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from affinery.errors import UnknownName

if TYPE_CHECKING:
    from affinery.adapters.contract import Kind

SHARED = {"bottleneck", "contract", "files", "layers", "meta", "routing", "sites"}


def kinds() -> list[str]:
    """The names of all kinds, found by looking into this folder; nothing is imported."""
    return sorted(
        module.name.replace("_", "-") for module in iter_modules(__path__) if module.name not in SHARED
    )


def kind(name: str) -> Kind[Any]:
    """One kind. Raises UnknownName."""
    if name not in kinds():
        raise UnknownName("adapter kind", name, kinds())
    found: Kind[Any] = import_module(f"{__name__}.{name.replace('-', '_')}").KIND
    return found

"""Job kinds, one file each: a file here that defines `KIND` does the jobs of that file's name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from affinery.errors import UnknownName

if TYPE_CHECKING:
    from orchestration.kinds.contract import JobKind

SHARED = {"contract"}


def kinds() -> list[str]:
    """The names of all job kinds, found by looking into this folder; nothing is imported."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in SHARED)


def kind(name: str) -> JobKind:
    """One job kind. Raises UnknownName."""
    if name not in kinds():
        raise UnknownName("job kind", name, kinds())
    found: JobKind = import_module(f"{__name__}.{name}").KIND
    return found

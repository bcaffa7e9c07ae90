"""Export formats, one file each: a file here that defines `FORMAT` is a format of that file's name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from affinery.errors import UnknownName
from affinery.importing import IMPORTING

if TYPE_CHECKING:
    from affinery.formats.contract import Format

SHARED = {
    "contract",
    "folded",
    "pipeline_files",
    "pipelines",
    "plain_dit",
    "plain_unet",
    "probe",
    "program",
}


def formats() -> list[str]:
    """The names of all formats, found by looking into this folder; nothing is imported."""
    return sorted(
        module.name.replace("_", "-") for module in iter_modules(__path__) if module.name not in SHARED
    )


def format_named(name: str, others: Sequence[str] = ()) -> Format:
    """One format. others: the names of those that are not here. Raises UnknownName."""
    if name not in formats():
        raise UnknownName("export format", name, sorted(["bundle", *formats(), *others]))
    with IMPORTING:
        found: Format = import_module(f"{__name__}.{name.replace('-', '_')}").FORMAT
    return found

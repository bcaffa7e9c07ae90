"""Numbers that were typed into a form."""

from __future__ import annotations

import math
from collections.abc import Mapping

from affinery.errors import ConfigInvalid


def whole(form: Mapping[str, str], name: str) -> int:
    """A whole number. Raises ConfigInvalid."""
    said = form.get(name, "")
    digits = said.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise ConfigInvalid(name, f"{said[:40]!r} is not a whole number.")
    return int(said)


def number(form: Mapping[str, str], name: str, most: float = 1e6) -> float:
    """Any number up to so much, of either sign. Raises ConfigInvalid."""
    said = form.get(name, "")
    try:
        value = float(said)
    except ValueError:
        value = math.nan
    if not abs(value) <= most:
        raise ConfigInvalid(name, f"{said[:40]!r} is not a number from -{most:g} to {most:g}.")
    return value


def wholes(form: Mapping[str, str], *names: str) -> dict[str, int]:
    """Those of these whole numbers that were filled in. Raises ConfigInvalid."""
    return {name: whole(form, name) for name in names if form.get(name)}

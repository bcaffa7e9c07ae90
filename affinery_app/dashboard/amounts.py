"""Numbers that were typed into a form."""

from __future__ import annotations

from collections.abc import Mapping

from affinery.errors import ConfigInvalid


def whole(form: Mapping[str, str], name: str) -> int:
    """A whole number. Raises ConfigInvalid."""
    said = form.get(name, "")
    digits = said.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise ConfigInvalid(name, f"{said[:40]!r} is not a whole number.")
    return int(said)

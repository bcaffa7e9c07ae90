"""Names as they come from files of others."""

from __future__ import annotations

import unicodedata

OBEYED = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, separators of lines


def can_be_shown(name: str) -> bool:
    """Whether a terminal shows a name and does not obey it."""
    return not any(unicodedata.category(character) in OBEYED for character in name)

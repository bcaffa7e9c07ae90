"""Counts in words."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """So many of something. many: how more than one are called, where that is not its name and an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"

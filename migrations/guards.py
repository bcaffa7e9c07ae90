"""Every trigger as the last revision leaves it: what a registry must have, word by word."""

from __future__ import annotations

from migrations import guards_0001, guards_0002, guards_0004, guards_0005

REVISIONS = (guards_0001, guards_0002, guards_0004, guards_0005)


def sqlite() -> dict[str, str]:
    """Trigger name → CREATE TRIGGER."""
    return {name: made for revision in REVISIONS for name, made in revision.sqlite().items()}


def postgresql() -> dict[str, tuple[str, str]]:
    """Trigger name → (its function, CREATE TRIGGER)."""
    return {name: made for revision in REVISIONS for name, made in revision.postgresql().items()}

"""Every trigger as the last revision leaves it: what a registry must have, word by word.

python -m migrations.guards     writes registry/guards.json, which the registry is compared with
"""

from __future__ import annotations

import json

from migrations import guards_0001, guards_0002, guards_0004, guards_0005, guards_0006, guards_0007
from registry import guards

REVISIONS = (guards_0001, guards_0002, guards_0004, guards_0005, guards_0006, guards_0007)


def sqlite() -> dict[str, str]:
    """Trigger name → CREATE TRIGGER."""
    return {name: made for revision in REVISIONS for name, made in revision.sqlite().items()}


def postgresql() -> dict[str, tuple[str, str]]:
    """Trigger name → (its function, CREATE TRIGGER)."""
    return {name: made for revision in REVISIONS for name, made in revision.postgresql().items()}


def digests() -> dict[str, dict[str, str]]:
    """By database and trigger, the digest of its words."""
    theirs = {
        name: guards.digest(trigger, function.split("$$")[1])
        for name, (function, trigger) in postgresql().items()
    }
    ours = {name: guards.digest(trigger) for name, trigger in sqlite().items()}
    return {"postgresql": theirs, "sqlite": ours}


if __name__ == "__main__":
    guards.FILE.write_text(json.dumps(digests(), indent=1, sort_keys=True) + "\n", encoding="utf-8")

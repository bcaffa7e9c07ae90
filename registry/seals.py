"""What a row said when it was recorded, in the event that tells of it: an edit behind the guards is found.

Of tasks, runs, proofs, evaluations and compositions the digest is made of the row itself
(registry/identities.py). The digest of these is that of a file, which says less than their row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.digests import digest_of
from registry.models import Adapter, Backbone, Base, Dataset, Export

SEALED: dict[str, type[Base]] = {
    "adapter": Adapter,
    "backbone": Backbone,
    "dataset": Dataset,
    "export": Export,
}
KEY = "row"  # in the event's payload
_RENAMED = "name"


def seal(kind: str, values: Mapping[str, Any]) -> dict[str, str]:
    """For the event of a beginning; nothing for what needs no seal. values: of every column, by its name."""
    if kind not in SEALED:
        return {}
    columns = [column.name for column in SEALED[kind].rows().columns if column.name != _RENAMED]
    return {KEY: digest_of([[name, values.get(name)] for name in columns])}


def of_row(kind: str, row: Base) -> dict[str, str]:
    """The same of a row that was written."""
    return seal(kind, {column.name: getattr(row, column.name) for column in SEALED[kind].rows().columns})

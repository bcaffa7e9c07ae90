"""Write a composition in a format, and record the export.

payload: chores.Export. The folder comes first: a bundle without its row is found whole by the next attempt;
another format goes beside what the last one left.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from orchestration import chores, exports
from orchestration.kinds.contract import Attempt


class Export:
    """One export."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        services = attempt.services
        chore, told = chores.begun(services.sessions, chores.Export, attempt.job.payload)
        out = None if chore.out is None else Path(chore.out)
        asked = exports.Asked(
            chore.composition, chore.format, out, chore.task, chore.unverified, chore.backbone
        )
        attempt.stage(f"writing {told.composition} as {chore.format}")
        written = exports.write(services.sessions, services.store, asked, services.exports)
        result = asdict(written) | {"path": str(written.path), "notes": list(written.notes)}
        attempt.complete(result, lambda session: exports.record(session, written))
        exports.tell(services.tracking, services.sessions, written)


KIND = Export()

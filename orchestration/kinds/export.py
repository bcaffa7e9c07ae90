"""Write a composition as a bundle, and record the export.

payload: chores.Export. The folder comes first: a bundle without its row is found whole by the next attempt.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sqlalchemy.orm import Session

from orchestration import additions, chores
from orchestration.kinds.contract import Attempt
from registry import compositions


class Export:
    """One bundle."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        services = attempt.services
        asked = chores.read(chores.Export, attempt.job.payload)
        with services.sessions.read() as session:
            record = compositions.get(session, asked.composition)
        out = None if asked.out is None else Path(asked.out)
        folder = additions.bundle_folder(record, out, services.exports)
        attempt.stage(f"writing {record.ref} to {folder}")
        digest, size_bytes = additions.write_composition(services.sessions, services.store, record, folder)

        def write(session: Session) -> None:
            compositions.record_export(
                session,
                composition=record.ref,
                format="bundle",
                digest=digest,
                path=str(folder),
                size_bytes=size_bytes,
            )

        attempt.complete(
            {"composition": record.ref, "path": str(folder), "digest": digest, "size_bytes": size_bytes},
            write,
        )


KIND = Export()

"""Write a composition as a bundle, and record the export.

payload: composition; out, the bundle's folder, where it is not <workspace>/exports/<name>-<version>.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sqlalchemy.orm import Session

from orchestration import additions
from orchestration.kinds.contract import Attempt
from registry import compositions


class Export:
    """One bundle."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        services, payload = attempt.services, attempt.job.payload
        with services.sessions.read() as session:
            record = compositions.get(session, payload["composition"])
        folder = Path(payload.get("out") or services.exports / f"{record.name}-{record.version}").absolute()
        attempt.stage(f"writing {record.ref} to {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
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

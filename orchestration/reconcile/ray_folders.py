"""Ray on this machine: the temporary folders of workers that are gone, which a kill leaves behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestration.local_ray import FOLDER
from orchestration.reconcile.findings import Finding, Progress
from orchestration.services import Services

NAME = "ray"


def reconcile(_: Services, dry_run: bool, on_progress: Progress) -> Iterator[Finding]:
    """A cluster's own folders are the cluster's."""
    base = Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()) / FOLDER  # noqa: S108
    if not base.is_dir() or base.stat().st_uid != os.getuid() or not Path("/proc/self").exists():
        return
    folders = sorted(path for path in base.iterdir() if path.is_dir())
    for done, folder in enumerate(folders, start=1):
        pid = folder.name.partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            if not dry_run:
                shutil.rmtree(folder, ignore_errors=True)
            yield Finding(NAME, str(folder), f"its worker, process {pid}, is gone", "it was deleted")
        on_progress(done, len(folders))

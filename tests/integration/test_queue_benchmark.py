"""The benchmark of the queue runs to its end at a tiny size, and every figure is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_both_queues_are_emptied_by_every_number_of_workers(tmp_path: Path) -> None:
    pytest.importorskip("procrastinate")
    command = [
        "--quick",
        "--jobs",
        "20",
        "--rounds",
        "1",
        "--many",
        "100",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.queue", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    for workers in ("1 worker", "4 workers", "16 workers"):
        assert figures[f"SQLite, {workers}: taken and ended"]["value"] > 0
        both = figures[f"PostgreSQL, {workers}: taken and ended"]
        assert both["theirs"]["median"] > 0
        assert both["met"] is not None
    assert figures["PostgreSQL: 100 jobs scheduled"]["value"] > 0

"""The benchmark of the registry runs to its end at a tiny size: both sides agree, every figure is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_registries_are_filled_alike_answer_alike_and_every_figure_is_told(tmp_path: Path) -> None:
    command = ["--quick", "--tasks", "60", "--versions", "3", "--seconds", "0.01", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.registry", *command, str(tmp_path / "figures.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads((tmp_path / "figures.json").read_text())
    assert (told["versions"], told["durability"]) == (180, {"journal_mode": "wal", "synchronous": "2"})
    figures = told["figures"]
    for question in ("get by name and version", "the deepest page of the list", "by run", "create"):
        for way in ("Python", "HTTP"):
            figure = figures[f"{question}, {way}: p50"]
            assert min(figure["ours"]["median"], figure["theirs"]["median"]) > 0
            assert (figure["met"] is None) == (way == "HTTP")
    limited = [name for name, figure in figures.items() if figure["target"] is not None]
    assert len(limited) == 6 + 5 + 5  # ten times as fast; p95 of reading; lineage

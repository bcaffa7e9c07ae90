"""How long commands that only read take, from call to prompt, in a workspace of 2,000 versions."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import migrations
from benchmarks.filling import Size, fill_ours, name_of
from benchmarks.timing import Figure, Spread, show, write

SIZE = Size(200, 10)
TARGET_SECONDS = 0.5
READS = (
    "--version",
    "--help",
    "backbone list",
    "backbone show dit",
    "dataset list",
    "task list",
    f"task show {name_of(1)}",
    f"adapter list --task {name_of(1)}",
    f"adapter show {name_of(1)}",
    "adapter search tag.stage=approved",
    "alias list",
    f"lineage {name_of(1)}",
    "job list",
    "events",
)


def taken(words: list[str], workspace: Path) -> tuple[float, float]:
    """→ seconds by the clock, and of the processor"""
    places = {"AFFINERY_WORKSPACE": str(workspace), "AFFINERY_URL": ""}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, begun = _used(), time.perf_counter()
    subprocess.run(
        [Path(sys.executable).with_name("affinery"), *words],
        env=environment | places,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun, _used() - before


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(workspace: Path, rounds: int) -> list[Figure]:
    """Every command in turn, round by round; a first round is not counted."""
    wall: dict[str, list[float]] = {read: [] for read in READS}
    used: dict[str, list[float]] = {read: [] for read in READS}
    for turn in range(rounds + 1):
        for read in READS:
            clock, processor = taken(read.split(), workspace)
            if turn:
                wall[read].append(clock)
                used[read].append(processor)
    target = TARGET_SECONDS
    return [
        *(Figure(f"affinery {read}", "s", Spread.of(wall[read]), target=target) for read in READS),
        *(Figure(f"affinery {read}: processor", "s", Spread.of(used[read]), target=target) for read in READS),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cli_reads", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        (workspace / "affinery.toml").write_text("schema = 1\n")
        url = f"sqlite:///{workspace / 'registry.db'}"
        migrations.upgrade(url)
        fill_ours(url, workspace, SIZE)
        figures = measured(workspace, 3 if chosen.quick else 10)
    facts: dict[str, Any] = {
        "versions": SIZE.total,
        "load": os.getloadavg()[0],
        "software": {name: version(name) for name in ("typer", "sqlalchemy", "pydantic")},
        "python": platform.python_version(),
    }
    caption = f"medians with the lowest and the highest; machine's load at the end {facts['load']:.1f}"
    show(f"Reads in a registry of {SIZE.total:,} versions", caption, figures, "")
    if chosen.json:
        write(chosen.json, facts, figures)


if __name__ == "__main__":
    main()

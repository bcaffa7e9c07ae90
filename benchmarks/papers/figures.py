"""The page's figures by name, each with its target where it has one: what `--json` writes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.papers.sequences import Bounds
from benchmarks.papers.sequences import figure as fd
from benchmarks.papers.tables import DIFFFIT, FULL, LORA, OURS, Table
from benchmarks.timing import Figure, Spread
from registry.metrics import numbers

Found = Mapping[tuple[str, str, str], Sequence[dict[str, Any]]]
"""By table, row and dataset, the cells of all seeds."""
ALLOWED = 1.05
"""How much of full fine-tuning's Fréchet distance DiffScaler may have."""


def figures(tables: Sequence[Table], found: Found, bounds: Bounds | None) -> list[Figure]:
    """What was measured of every row and dataset, over its seeds; the targets; what is forgotten."""
    listed = []
    for table in tables:
        for row in table.rows:
            for dataset in row.cells:
                cells = found.get((table.name, row.name, dataset), ())
                measured = [numbers(cell["results"]) for cell in cells]
                names = dict.fromkeys(name for each in measured for name in each)
                for name in names:
                    values = [each[name] for each in measured if name in each]
                    listed.append(
                        Figure(f"{table.name}: {row.name} on {dataset}: {name}", "", Spread.of(values))
                    )
                if cells:
                    seconds = Spread.of([cell["seconds"] for cell in cells])
                    listed.append(Figure(f"{table.name}: {row.name} on {dataset}: training", "s", seconds))
        if table.name == "methods":
            listed += [figure for each in distances(table, found).items() for figure in _targets(*each)]
    if bounds is not None:
        ways = bounds.averages().items()
        listed += [Figure(f"forgetting: {way}", "", Spread.of(each)) for way, each in ways if each]
    return listed


def distances(table: Table, found: Found) -> dict[str, dict[str, float]]:
    """By dataset and row, the seeds' mean Fréchet distance; where both sides of the target are there."""
    means: dict[str, dict[str, float]] = {}
    for row in table.rows:
        for dataset in row.cells:
            values = [fd(cell["results"]) for cell in found.get((table.name, row.name, dataset), ())]
            if values:
                means.setdefault(dataset, {})[row.name] = statistics.mean(values)
    return {dataset: each for dataset, each in means.items() if {FULL, OURS} <= each.keys()}


def _targets(dataset: str, distance: dict[str, float]) -> list[Figure]:
    targets = {FULL: ALLOWED, LORA: 1.0, DIFFFIT: 1.0}
    return [
        Figure(
            f"methods: DiffScaler / {other} on {dataset}",
            "×",
            Spread.of([distance[OURS] / distance[other]]),
            target=target,
        )
        for other, target in targets.items()
        if other in distance
    ]

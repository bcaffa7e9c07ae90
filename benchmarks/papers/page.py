"""The page with the papers' tables, from the cells that are there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.papers.tables import Table
from registry.metrics import numbers
from trainers.pictures import png, titled

Found = Mapping[tuple[str, str, str], Sequence[dict[str, Any]]]
"""By table, row and dataset, the cells of all seeds."""

ABOUT = """
This page is written by the command below; do not edit its tables. A table a dataset: figures of one table
share one protocol, whose reference is the dataset's training images. Lower is better but for IS, recognition
and F1. Each value is the mean over the seeds, with their lowest and highest.
""".strip()
FORGETTING = """
R[stage, task], Fréchet distance. Full fine-tuning goes on with the same weights, each task with class rows of
its own: what it forgets is the lower bound. Adapters of a task of their own forget nothing: their columns are
constant, which `affinery retention` measures.
""".strip()


@dataclass(frozen=True)
class Facts:
    """What stands above the tables: how they were made, and by which command."""

    command: str
    profile: str
    device: str
    sampling: str
    backbones: Mapping[str, str]
    datasets: Mapping[str, str]


def sheet(rows: Sequence[tuple[str, Path]]) -> bytes:
    """Samples of several methods under each other, as one picture."""
    parts = []
    for name, path in rows:
        with Image.open(path) as opened:
            parts.append((name, opened.convert("RGB")))
    return png(titled(parts))


def sheets(tables: Sequence[Table], found: Found, cells: Path) -> dict[tuple[str, str], bytes]:
    """By table and dataset, the samples of every row's first seed. cells: the folder of their pictures."""
    listed: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    for table in tables:
        for row in table.rows:
            for dataset in row.cells:
                for one in found.get((table.name, row.name, dataset), ())[:1]:
                    listed.setdefault((table.name, dataset), []).append(
                        (row.name, cells / f"{one['key']}.png")
                    )
    return {place: sheet(rows) for place, rows in listed.items()}


def page(
    facts: Facts,
    tables: Sequence[Table],
    found: Found,
    sequences: Sequence[dict[str, Any]],
    pictures: str | None = None,
) -> str:
    """The whole page as Markdown. pictures: the folder, seen from the page, with TABLE-DATASET.png."""
    lines = [
        "# The papers' tables at small scale",
        "",
        ABOUT,
        "",
        "```console",
        f"$ {facts.command}",
        "```",
        "",
        f"Profile `{facts.profile}`, on {facts.device}. {facts.sampling}",
        "",
    ]
    if facts.profile == "quick":
        lines += ["**This is a quick run: it shows that everything runs, and its figures mean nothing.**", ""]
    lines += _listing("backbone", facts.backbones) + _listing("dataset", facts.datasets)
    for table in tables:
        lines += _table(table, found, facts.command, pictures)
    if sequences:
        lines += _sequences(sequences)
    return "\n".join(lines).rstrip() + "\n"


def _listing(what: str, entries: Mapping[str, str]) -> list[str]:
    return [f"| {what} | |", "|---|---|", *(f"| {name} | {about} |" for name, about in entries.items()), ""]


def _table(table: Table, found: Found, command: str, pictures: str | None) -> list[str]:
    lines = [
        f"## {table.title}",
        "",
        f"{table.paper}. `{command} --only {table.name}`",
        "",
    ]
    datasets = list(dict.fromkeys(name for row in table.rows for name in row.cells))
    for dataset in datasets:
        every = {row.name: found.get((table.name, row.name, dataset), ()) for row in table.rows}
        there = {name: cells for name, cells in every.items() if cells}
        if not there:
            continue
        digests = {cell["protocol_digest"] for cells in there.values() for cell in cells}
        figures = _figures(table.shown, [cell for cells in there.values() for cell in cells])
        lines += [
            f"### {dataset}",
            "",
            f"| method | parameters | {' | '.join(figures)} | train time |",
            f"|---|---:|{'---:|' * len(figures)}---:|",
        ]
        whole = next((cells for name, cells in there.items() if name.startswith("full")), None)
        unit = None if whole is None else statistics.mean(cell["seconds"] for cell in whole)
        for name, cells in there.items():
            values = [_spread([numbers(cell["results"]).get(figure) for cell in cells]) for figure in figures]
            lines.append(
                f"| {name} | {cells[0]['parameters']:,} | {' | '.join(values)} | {_time(cells, unit)} |"
            )
        named = ", ".join(f"`{digest[:12]}`" for digest in sorted(digests))
        lines += ["", f"Protocol{'s' if len(digests) > 1 else ''} {named}.", ""]
        if pictures is not None:
            lines += [f"![samples]({pictures}/{table.name}-{dataset}.png)", ""]
    return lines


def _figures(shown: Sequence[str], cells: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the figures to show, as the cells have them."""
    names = list(dict.fromkeys(name for cell in cells for name in numbers(cell["results"])))
    found = []
    for prefix in shown:
        other = {"FD": "FID", "KD": "KID"}.get(prefix, prefix)
        fitting = [name for name in names if name.startswith((prefix, other))]
        found += [name for name in fitting if name.endswith(".mean")] or fitting[:1]
    return found


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.4g}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.4g} to {max(known):.4g})"


def _time(cells: Sequence[dict[str, Any]], unit: float | None) -> str:
    """Relative to full fine-tuning's where the table has that, else in seconds."""
    seconds = statistics.mean(cell["seconds"] for cell in cells)
    return f"{seconds:.0f} s" if not unit else f"{seconds / unit:.2f} ×"


def _sequences(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## One model, task after task",
        "",
        FORGETTING,
        "",
    ]
    for one in found:
        order = one["order"]
        lines += [f"{one['kind']}, {' → '.join(order)}", "", f"| after | {' | '.join(order)} |"]
        lines.append(f"|---|{'---:|' * len(order)}")
        for name, row in zip(order, one["matrix"], strict=True):
            cells = [f"{value:.4g}" for value in row] + [""] * (len(order) - len(row))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        last = one["matrix"][-1]
        forgotten = [f"{last[i] - one['matrix'][i][i]:+.4g}" for i in range(len(order))]
        lines += [f"| forgotten (first − last) | {' | '.join(forgotten)} |", ""]
    return lines

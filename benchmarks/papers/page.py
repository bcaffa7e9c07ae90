"""The page with the papers' tables, from the cells that are there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.papers.figures import ALLOWED, Found, distances
from benchmarks.papers.sequences import Bounds
from benchmarks.papers.tables import DIFFFIT, FULL, LORA, OURS, Table
from registry.metrics import numbers
from trainers.pictures import png, titled

ABOUT = """
This page is written by the command below; do not edit its tables. A table a dataset: figures of one table
share one protocol, whose reference is the dataset's training images. Lower is better but for IS, recognition
and F1. Each value is the mean over the seeds, with their lowest and highest.
""".strip()
FORGETTING = """
R[stage, task], Fréchet distance. Full fine-tuning goes on with the same weights, each task with class rows
of its own: what it forgets is the lower bound. The upper bound is one model trained on all tasks at once,
with as many steps in all. An adapter a task forgets nothing: its column is constant, which
`affinery retention` measures. Each figure of the first table is an average over the tasks, what is forgotten
over all but the last; in brackets the lowest and the highest of all orders and seeds.
""".strip()
STEPS = """
Each method is looked at before its first step and after each fifth of its steps, as the running means of its
tensors stand then. The learning rate falls to zero at the end, so an early point is not what a training of
that length would reach.
""".strip()


@dataclass(frozen=True)
class Facts:
    """What stands above the tables: how they were made, by which command, and what a person says of them."""

    command: str
    profile: str
    device: str
    sampling: str
    backbones: Mapping[str, str]
    datasets: Mapping[str, str]
    words: str = ""
    title: str = "The papers' tables at small scale"


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
    bounds: Bounds | None = None,
    pictures: str | None = None,
    steps: Sequence[str] = (),
    diverged: Sequence[str] = (),
) -> str:
    """The whole page as Markdown.

    pictures: the folder, seen from the page, with TABLE-DATASET.png; steps: those in it of the distance over
    steps; diverged: trainings without figures, in words.
    """
    lines = [
        f"# {facts.title}",
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
    if facts.words:
        lines += [facts.words.strip(), ""]
    for table in tables:
        if table.name == "methods":
            lines += standing(table, found)
    lines += _listing("backbone", facts.backbones) + _listing("dataset", facts.datasets)
    for table in tables:
        lines += _table(table, found, facts.command, pictures)
    if bounds is not None and bounds.sequences:
        lines += _sequences(bounds, facts.command)
    if steps:
        lines += ["## Distance over steps", "", f"`{facts.command} --only steps`", "", STEPS, ""]
        lines += [line for name in steps for line in (f"![distance over steps]({pictures}/{name})", "")]
    if diverged:
        lines += ["## Diverged", "", "Trainings that ended without a figure:", ""]
        lines += [*(f"- {each}" for each in diverged), ""]
    return "\n".join(lines).rstrip() + "\n"


def _listing(what: str, entries: Mapping[str, str]) -> list[str]:
    return [f"| {what} | |", "|---|---|", *(f"| {name} | {about} |" for name, about in entries.items()), ""]


def _table(table: Table, found: Found, command: str, pictures: str | None) -> list[str]:
    if not any(found.get((table.name, row.name, dataset)) for row in table.rows for dataset in row.cells):
        return []
    lines = [
        f"## {table.title}",
        "",
        f"{table.paper}. `{command} --only {table.name}`; a row alone with `--row` and its name.",
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
            f"| method | parameters | {' | '.join(figures)} | train time | seeds |",
            f"|---|---:|{'---:|' * len(figures)}---:|---:|",
        ]
        whole = next((cells for name, cells in there.items() if name.startswith("full")), None)
        unit = None if whole is None else statistics.mean(cell["seconds"] for cell in whole)
        for name, cells in there.items():
            values = [_spread([_value(cell, figure) for cell in cells]) for figure in figures]
            parameters, time = f"{cells[0]['parameters']:,}", _time(cells, unit)
            lines.append(f"| {name} | {parameters} | {' | '.join(values)} | {time} | {len(cells)} |")
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


def _value(cell: Mapping[str, Any], figure: str) -> float | None:
    return numbers(cell["results"]).get(figure)


def standing(table: Table, found: Found) -> list[str]:
    """Which method is the best where, by the mean Fréchet distance; whether the target is met."""
    whole = distances(table, found)
    if not whole:
        return []
    lines = ["| dataset | Fréchet distance, best first | DiffScaler / full fine-tuning |", "|---|---|---:|"]
    for dataset, each in whole.items():
        ordered = ", ".join(f"{name} {each[name]:.3g}" for name in sorted(each, key=lambda name: each[name]))
        lines.append(f"| {dataset} | {ordered} | {each[OURS] / each[FULL]:.2f} |")
    near = sum(each[OURS] <= ALLOWED * each[FULL] for each in whole.values())
    others = [[each[name] for name in (LORA, DIFFFIT) if name in each] for each in whole.values()]
    better = sum(
        all(each[OURS] < other for other in rest) for each, rest in zip(whole.values(), others, strict=True)
    )
    verdict = (
        f"DiffScaler is at or below full fine-tuning × {ALLOWED} on {near} of {len(whole)} datasets, "
        f"and better than LoRA and DiffFit on {better} of {len(whole)}."
    )
    return [*lines, "", verdict, ""]


def _sequences(bounds: Bounds, command: str) -> list[str]:
    lines = ["## One model, task after task", "", f"`{command} --only forgetting`", "", FORGETTING, ""]
    lines.append(
        "| way of learning | average at the end | forgotten (last − first) | forgotten (last − best) |"
    )
    lines.append("|---|---:|---:|---:|")
    forgotten = [bounds.forgotten(since_best=best) for best in (False, True)]
    for way, values in bounds.averages().items():
        if values:
            lost = " | ".join(_spread(each.get(way, ())) for each in forgotten)
            lines.append(f"| {way} | {_spread(values)} | {lost} |")
    lines.append("")
    for one in bounds.sequences:
        order, kind = one["order"], f"{one['kind']}, seed {one['seed']}"
        lines += [f"{kind}: {' → '.join(order)}", "", f"| after | {' | '.join(order)} |"]
        lines.append(f"|---|{'---:|' * len(order)}")
        for name, row in zip(order, one["matrix"], strict=True):
            cells = [f"{value:.4g}" for value in row] + [""] * (len(order) - len(row))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        last = one["matrix"][-1]
        changes = [f"{last[i] - one['matrix'][i][i]:+.4g}" for i in range(len(order))]
        lines.append(f"| forgotten (last − first) | {' | '.join(changes)} |")
        for way, found in (("all at once", bounds.together), ("an adapter a task", bounds.apart)):
            ends = [_spread([each[name] for each in found if name in each]) for name in order]
            if found:
                lines.append(f"| {way} | {' | '.join(ends)} |")
        lines.append("")
    return lines

"""Fills the tables of a page from the figures that a benchmark wrote, so that none is typed by hand.

    python -m benchmarks.report docs/performance.md cpu=figures.json [cuda=more.json …]

A table stands between `<!-- figures NAME -->` and `<!-- end NAME -->`; what was there goes.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread, in_unit


def table(measured: dict[str, Any]) -> str:
    """One run's machine and figures, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    machine = f"{measured['machine']}; {measured['threads']} thread(s), {measured['precision']}"
    lines = [
        f"{machine}, {measured['clock']} time, load {measured['load']} at the start; {versions}.",
        "",
        "| figure | measured | target | met |",
        "|---|---|---|---|",
    ]
    lines += [row(name, figure) for name, figure in measured["figures"].items()]
    return "\n".join(lines)


def row(name: str, figure: dict[str, Any]) -> str:
    unit = figure["unit"]
    limit = figure["target"]
    sign = "≥" if figure["more_is_better"] else "≤"
    goal = "" if limit is None else f"{sign} {limit:.3g} {unit}"
    met = {True: "yes", False: "**no**", None: ""}[figure["met"]]
    return f"| {name.strip()} | {in_unit(Spread(**figure['ours']), unit)} {unit} | {goal} | {met} |"


def filled(page: str, name: str, measured: dict[str, Any]) -> str:
    """The page with this run's table at its place. Raises SystemExit where it has none."""
    start, end = f"<!-- figures {name} -->", f"<!-- end {name} -->"
    place = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not place.search(page):
        raise SystemExit(f"The page has no place for {name!r}: write {start} and {end} where it belongs.")
    return place.sub(lambda _: f"{start}\n{table(measured)}\n{end}", page)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("figures", nargs="+", metavar="NAME=FILE")
    chosen = parser.parse_args()
    page = chosen.page.read_text(encoding="utf-8")
    for entry in chosen.figures:
        name, equals, file = entry.partition("=")
        if not equals:
            parser.error(f"{entry!r} is not of the form NAME=FILE")
        page = filled(page, name, json.loads(Path(file).read_text(encoding="utf-8")))
    chosen.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

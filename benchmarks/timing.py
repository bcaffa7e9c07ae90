"""Times of several ways to do the same thing, taken in turns, so that a busy machine slows them all alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Spread:
    """The median of what several rounds gave, and the lowest and the highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figure:
    """One line of the result.

    ours, theirs: in the unit; theirs is None where the other side has no such thing. target: what ours may be
    at most (at least, where more is better); None where nothing was aimed at, or where it is
    `bound_by_theirs`: then ours is to be so many `times` less than theirs.
    """

    name: str
    unit: str
    ours: Spread
    theirs: Spread | None = None
    target: float | None = None
    bound_by_theirs: bool = False
    times: float = 1
    more_is_better: bool = False

    @property
    def limit(self) -> float | None:
        return self.theirs.median / self.times if self.bound_by_theirs and self.theirs else self.target

    @property
    def met(self) -> bool | None:
        if self.limit is None:
            return None
        return self.ours.median >= self.limit if self.more_is_better else self.ours.median <= self.limit


@dataclass(frozen=True)
class Stopwatch:
    """now: seconds on some clock."""

    now: Callable[[], float]

    def seconds(self, do: Callable[[], object]) -> float:
        start = self.now()
        do()
        return self.now() - start

    def in_turns(self, ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Seconds that each way took in each round, by name. Every round begins with another of them."""
        names = list(ways)
        times: dict[str, list[float]] = {name: [] for name in names}
        for do in ways.values():
            do()  # what is done only once is not timed
        for turn in range(rounds):
            at = turn % len(names)
            for name in names[at:] + names[:at]:
                times[name].append(self.seconds(ways[name]))
        return times

    def over(
        self, bare: Callable[[], object], ways: Mapping[str, Callable[[], object]], rounds: int
    ) -> dict[str, list[float]]:
        """How many times longer than `bare` each way took in each round, by name.

        Each is set against the two runs of `bare` right before and right after it.
        """
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        for do in (bare, *ways.values()):
            do()
        for _ in range(rounds):
            before = self.seconds(bare)
            for name, do in ways.items():
                taken, after = self.seconds(do), self.seconds(bare)
                ratios[name].append(2 * taken / (before + after))
                before = after
        return ratios


# The processor's own time is that of this process, however busy others keep the machine.
CLOCKS = {"wall": Stopwatch(time.perf_counter), "cpu": Stopwatch(time.process_time)}


def in_unit(spread: Spread | None, unit: str) -> str:
    if spread is None:
        return "–"
    digits = {"×": 2, "": 0}.get(unit, 1 if spread.median >= 1 else 3)
    low, middle, high = (f"{value:,.{digits}f}" for value in (spread.low, spread.median, spread.high))
    return middle if low == high else f"{middle} ({low}–{high})"


def show(title: str, caption: str, figures: list[Figure], rival: str = "PEFT") -> None:
    """Prints both sides, a line a figure."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("figure", "unit", "Affinery", rival, "target", "met"):
        table.add_column(column, justify="left" if column in ("figure", "unit", "met") else "right")
    for figure in figures:
        limit = in_limit(figure, rival)
        met = {True: "yes", False: "NO", None: ""}[figure.met]
        sides = (in_unit(side, figure.unit) for side in (figure.ours, figure.theirs))
        table.add_row(figure.name, figure.unit, *sides, limit, met)
    Console(width=132, highlight=False).print(table)


def in_limit(figure: Figure, rival: str) -> str:
    if figure.bound_by_theirs:
        return f"{rival}'s" + ("" if figure.times == 1 else f" / {figure.times:g}")
    return "" if figure.target is None else f"{'≥' if figure.more_is_better else '≤'} {figure.target:g}"


def write(path: Path, facts: Mapping[str, object], figures: list[Figure]) -> None:
    """The figures by name: value, target, met."""
    listed = {
        figure.name: {
            "value": figure.ours.median,
            "target": figure.limit,
            "more_is_better": figure.more_is_better,
            "met": figure.met,
            "unit": figure.unit,
            "ours": asdict(figure.ours),
            "theirs": None if figure.theirs is None else asdict(figure.theirs),
        }
        for figure in figures
    }
    path.write_text(json.dumps({**facts, "figures": listed}, indent=1, ensure_ascii=False) + "\n")

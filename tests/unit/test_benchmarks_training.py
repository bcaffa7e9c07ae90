"""The benchmark of training runs, and its figures reach the page that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.report import filled
from benchmarks.timing import CLOCKS, Figure, Spread, write
from benchmarks.training import TINY, Bench, saved, together


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    bench = Bench(TINY, CLOCKS["cpu"], torch.device("cpu"))
    found = [*saved(bench), *together(bench)]
    torch.set_num_threads(before)
    return found


def test_less_is_kept_the_more_is_computed_again(figures: list[Figure]) -> None:
    kept = {
        figure.name.rpartition(", ")[2]: figure.ours.median for figure in figures if "kept of" in figure.name
    }
    assert kept["block"] < kept["cheap"] < kept["custom"] < kept["plain"]


def test_figures_reach_the_page_and_replace_what_was_there(figures: list[Figure], tmp_path: Path) -> None:
    facts = {"machine": "here", "threads": 1, "precision": "fp32", "clock": "cpu", "load": 0, "versions": {}}
    missed = Figure("samples", "×", Spread.of([1.0]), None, 2.0, more_is_better=True)
    write(tmp_path / "figures.json", facts, [*figures, missed])
    measured = json.loads((tmp_path / "figures.json").read_text())
    page = "before\n<!-- figures cpu -->\nold\n<!-- end cpu -->\nafter\n"
    told = filled(page, "cpu", measured)
    assert told == filled(told, "cpu", measured)
    assert "old" not in told
    assert told.startswith("before\n")
    assert told.endswith("\nafter\n")
    assert "| samples | 1.00 × | ≥ 2 × | **no** |" in told
    assert told.count("\n| ") == len(figures) + 2
    with pytest.raises(SystemExit, match="no place for 'cuda'"):
        filled(page, "cuda", measured)

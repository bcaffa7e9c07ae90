"""Tables of the command line: they fit, they lose nothing, and their columns stand one below the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from affinery_app.cli import tables
from affinery_app.cli.output import table

SHOWN = "xy漢é–"
CELLS = st.text(f"{SHOWN} ", max_size=60)
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_table_that_fits_is_as_wide_as_what_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    table(["task", "steps"], [("digits", 10), ("漢字", 2000)], "", numbers=["steps"])
    table(["task", "steps"], [("digits", None)], "")
    assert capsys.readouterr().out.splitlines() == [
        "task   steps",
        "────────────",
        "digits    10",
        "漢字    2000",
        "task     steps",
        "──────────────",
        "digits   –",
    ]


def test_columns_stand_closer_where_all_of_it_fits_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "19")
    table(["adapter", "size"], [("digits@1", "659.1 KiB")], "")
    assert capsys.readouterr().out.splitlines() == [
        "adapter   size",
        "─" * 19,
        "digits@1  659.1 KiB",
    ]


def test_the_widest_columns_give_way_and_words_stay_whole_where_they_can(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "32")
    table(["a", "words", "file"], [("x", "one two three four", "0123456789abcdefghijklmn")], "")
    assert capsys.readouterr().out.splitlines() == [
        "a   words   file",
        "────────────────────────────────",
        "x   one     0123456789abcdefghij",
        "    two     klmn",
        "    three",
        "    four",
    ]


def test_on_a_wide_screen_one_long_name_is_broken_and_the_table_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = [f"column {i}" for i in range(6)]
    table(columns, [("a-name-that-is-as-long-as-names-go", *["0123456789"] * 5), ["x"] * 6], "")
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [word for i in range(6) for word in ("column", str(i))]
    assert (len(rule), rows[-1].split()) == (80, ["x"] * 6)


def test_where_words_would_be_broken_on_a_narrow_screen_each_row_is_told_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    columns = ["adapter", "kind", "parameters", "recognised", "added"]
    rows = [("digits@1", "affiner", "48,680,000", None, "2026-11-22 15:57"), ("x@1", "", 1, 2, 3)]
    table(columns, rows, "")
    assert capsys.readouterr().out.splitlines() == [
        "adapter     digits@1",
        "kind        affiner",
        "parameters  48,680,000",
        "recognised  –",
        "added       2026-11-22 15:57",
        "",
        "adapter     x@1",
        "parameters  1",
        "recognised  2",
        "added       3",
    ]


@given(rows=ROWS, width=st.integers(20, 90), gap=st.sampled_from([1, 3]), right=st.booleans())
def test_every_table_fits_and_shows_every_character(
    rows: list[tuple[str, str, str]], width: int, gap: int, right: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        lines = list(tables.drawn(["a", "b", "c"], rows, [False, right, False], gap))
    assert max(map(cell_len, lines)) <= width
    told, known = ("".join(lines), "".join(map("".join, rows)))
    assert [told.count(each) for each in SHOWN] == [known.count(each) for each in SHOWN]


def test_the_heading_is_bold_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    drawn = [list(tables.drawn(["task"], [["digits"]], [False], 3))]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    drawn.append(list(tables.drawn(["task"], [["digits"]], [False], 3)))
    monkeypatch.setenv("TERM", "dumb")
    drawn.append(list(tables.drawn(["task"], [["digits"]], [False], 3)))
    assert drawn == [
        ["task", "──────", "digits"],
        ["\x1b[1mtask\x1b[0m", "──────", "digits"],
        ["task", "──────", "digits"],
    ]

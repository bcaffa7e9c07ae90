"""Forgetting and transfer, counted by hand."""

from __future__ import annotations

import pytest

from trainers.evaluation.continual import Matrix, smoothed, steps_to

STAGES, TASKS = ("digits", "letters", "animals"), ("digits", "letters", "animals")


def matrix(*rows: tuple[float | None, ...], more: bool = False) -> Matrix:
    return Matrix("FD", STAGES, TASKS, rows, (9.0, 8.0, None), more)


FORGETFUL = matrix((2.0, None, None), (1.0, 3.0, None), (5.0, 3.5, 4.0))


def test_what_never_changes_was_never_forgotten() -> None:
    found = matrix((2.0, None, None), (2.0, 3.0, None), (2.0, 3.0, 4.0))
    for task in TASKS:
        assert (found.forgotten_since_first(task), found.forgotten_since_best(task)) == (0, 0)
    assert found.average == 3.0


def test_forgetting_is_told_since_the_first_figure_and_since_the_best() -> None:
    assert FORGETFUL.forgotten_since_first("digits") == 3.0
    assert FORGETFUL.forgotten_since_best("digits") == 4.0
    assert FORGETFUL.forgotten_since_first("animals") == 0.0


def test_worse_is_positive_whichever_way_a_figure_counts() -> None:
    shares = matrix((0.75, None, None), (1.0, 0.5, None), (0.25, 0.5, 0.5), more=True)
    assert shares.forgotten_since_first("digits") == 0.5
    assert shares.forgotten_since_best("digits") == 0.75


def test_what_was_learnt_is_counted_from_step_0() -> None:
    assert FORGETFUL.learnt("digits") == 7.0
    assert FORGETFUL.learnt("animals") is None  # nothing was drawn before
    told = FORGETFUL.to_json()
    assert told["forgetting_max_last"] == {"digits": 4.0, "letters": 0.5, "animals": 0.0}
    assert told["matrix"][0] == [2.0, None, None]


def test_a_task_without_the_figure_has_an_empty_column_and_is_left_out_of_the_average() -> None:
    found = matrix((0.5, None, None), (0.5, None, None), (0.5, None, 0.75), more=True)
    told = found.to_json()
    for key in ("forgetting_first_last", "forgetting_max_last", "learnt_since_step_0"):
        assert told[key]["letters"] is None
    assert found.average == 0.625


def test_steps_are_counted_to_where_the_running_mean_is_low_enough() -> None:
    flat = [(10, 1.0), (20, 1.0), (30, 0.0), (40, 0.0)]
    assert smoothed(flat)[:2] == [(10, 1.0), (20, pytest.approx(1.0))]
    assert steps_to(flat, 0.99) == 30
    assert steps_to(flat, 0.1) is None  # one low value is not enough
    assert steps_to([(10, 0.5)], 0.5) == 10

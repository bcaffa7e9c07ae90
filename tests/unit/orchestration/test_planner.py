"""The planner: what is chosen on which machine, and that what can never fit is told and not waited for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import NeverFits, TooLarge
from orchestration.jobs import Capacity
from orchestration.needs import Need, check_fits
from orchestration.planner import (
    GIB,
    Demand,
    Machine,
    Share,
    as_before,
    choose,
    defaults,
    fitting,
    told,
)

LAPTOP = Machine(2, 0, 8 * GIB)
SERVER = Machine(64, 4, 256 * GIB, 80 * GIB)
PROCESSORS = Machine(32, 0, 64 * GIB)


@pytest.mark.parametrize(
    ("demand", "there", "strategy", "said"),
    [
        (Demand(1, False, 64), LAPTOP, "sequential", "the worker to itself"),
        (Demand(5, False, 64), LAPTOP, "sequential", "2 processors and 8 GiB of memory hold one of 5"),
        (Demand(3, True, 64), LAPTOP, "co-trained", "3 tasks share one pass"),
        (Demand(1, False, 64), SERVER, "data-parallel", "one task and 4 GPUs"),
        (Demand(1, False, 8), SERVER, "sequential", "the worker to itself"),
        (Demand(3, False, 64), SERVER, "parallel", "3 of 3 fits run at once, each on 1 GPU"),
        (Demand(20, False, 64, 30 * GIB), SERVER, "parallel", "8 of 20 fits run at once, each on 0.5 GPUs"),
        (Demand(20, False, 64), PROCESSORS, "parallel", "8 of 20 fits run at once on 32 processors"),
        (Demand(20, False, 64, 20 * GIB), PROCESSORS, "parallel", "2 of 20 fits"),
        (Demand(20, False, 64, 40 * GIB), PROCESSORS, "sequential", "hold one of 20"),
        (Demand(1, False, 64, workers=2), LAPTOP, "data-parallel", "given 2 workers"),
        (Demand(1, False, 64, strategy="parallel"), LAPTOP, "parallel", "as asked for"),
    ],
)
def test_the_strategy_follows_from_what_there_is_and_says_why(
    demand: Demand, there: Machine, strategy: str, said: str
) -> None:
    choice = choose(demand, there)
    assert choice.strategy == strategy
    assert said in choice.why
    assert (choice.cpus or 0) <= there.cpus
    assert (choice.gpus or 0) <= there.gpus


def test_a_training_that_says_nothing_has_the_worker_to_itself_unless_something_else_was_chosen() -> None:
    whole = Capacity(64, 4, 256 * GIB)
    assert defaults(whole)["train"].gpus == 1
    assert defaults(whole)["verify"] == Capacity(1, 0, 0)
    shared = defaults(whole, choose(Demand(20, False, 64, 30 * GIB), SERVER))["train"]
    assert (shared.cpus, shared.gpus) == (8, 0.5)


def test_what_no_machine_of_a_cluster_has_is_refused_with_what_there_is() -> None:
    nodes = [Capacity(8, 0), Capacity(4, 2)]
    said = Share(2, 0, said=True)
    assert fitting(said, nodes, "job") == said
    assert fitting(Share(4, 2, workers=2, said=True), nodes, "job").workers == 2
    with pytest.raises(NeverFits, match="needs 4 processors and 4 GPUs"):
        fitting(Share(4, 4, said=True), nodes, "job")
    with pytest.raises(NeverFits, match="3 × 4 processors and 1 GPU"):
        fitting(Share(12, 3, workers=3, said=True), nodes, "job")
    with pytest.raises(NeverFits, match="cluster have nothing"):
        fitting(said, [], "job")


def test_a_job_that_says_nothing_takes_the_largest_machine_of_a_cluster() -> None:
    taken = fitting(Share(64, 1), [Capacity(8, 0), Capacity(4, 2)], "job")
    assert (taken.cpus, taken.gpus) == (4, 1)


def test_a_later_attempt_has_the_share_of_the_first_so_that_its_sums_are_rounded_alike(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "job" / "share.json"
    first = as_before(Share(2, strategy="parallel", why="so"), kept)
    assert json.loads(kept.read_bytes())["cpus"] == 2
    assert as_before(Share(8, ray="elsewhere"), kept) == replace(first, ray="elsewhere")
    less = Share(1)
    assert as_before(less, kept) == less


def test_amounts_are_told_as_people_say_them() -> None:
    assert told(Capacity(1, 0.5, 8 * GIB)) == "1 processor, 0.5 GPUs and 8 GiB of memory"
    assert told(Capacity(2, 0)) == "2 processors"
    assert told(Capacity()) == "nothing"


NEED = Need(1_000_000, 1e9, 2 * GIB, 1 * GIB, 40 * GIB)
PLAIN = {"batch": 64, "precision": "fp32"}


@pytest.mark.parametrize(
    ("recipe", "room"),
    [
        (PLAIN, 43 * GIB),
        (PLAIN, 0),  # it is not known what there is
        (PLAIN | {"precision": "auto"}, 23 * GIB),
        (PLAIN | {"recompute": "block"}, 3 * GIB),
    ],
)
def test_a_training_that_may_fit_is_not_refused(recipe: dict[str, Any], room: int) -> None:
    check_fits(NEED, recipe, room, "a GPU here")


def test_workers_share_what_is_kept_of_a_batch_but_not_the_weights() -> None:
    check_fits(NEED, PLAIN, 23 * GIB, "a GPU here", shared_by=2)
    with pytest.raises(TooLarge, match="at least 23 GiB"):
        check_fits(NEED, PLAIN, 22 * GIB, "a GPU here", shared_by=2)


def test_a_training_that_cannot_fit_is_refused_with_figures_and_with_what_would_help() -> None:
    with pytest.raises(TooLarge) as refused:
        check_fits(NEED, PLAIN, 16 * GIB, "a GPU here")
    said = str(refused.value)
    assert "at least 43 GiB of memory (2 GiB of weights, 1 GiB for what trains, 40 GiB kept" in said
    assert "a GPU here has 16 GiB" in said
    assert "--set accumulate=4" in said
    assert "--set batch=16" in said
    assert "--set recompute=block" in said
    check_fits(replace(NEED, saved_bytes=NEED.saved_bytes // 4), PLAIN, 16 * GIB, "a GPU here")


def test_what_does_not_even_fit_without_a_batch_is_not_told_to_make_it_smaller() -> None:
    with pytest.raises(TooLarge) as refused:
        check_fits(NEED, PLAIN, 2 * GIB, "this machine")
    assert "batch=" not in str(refused.value)
    assert "a worker on a larger machine" in str(refused.value)

"""Recipes and plans: what a run is reproduced from survives its journey, and nonsense is refused by name."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from affinery.errors import ConfigInvalid
from trainers.plan import PlannedTask, TrainingPlan
from trainers.recipe import Recipe

NAN, INFINITE = float("nan"), float("inf")


def test_a_recipe_survives_its_journey_through_json() -> None:
    recipe = Recipe(steps=7, lr=0.25, seed=2**40)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict({}) == Recipe()


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
@pytest.mark.parametrize("value", ["12", True, None, [1], {}, NAN, INFINITE, -INFINITE])
def test_what_is_no_number_is_refused_for_every_setting(name: str, value: object) -> None:
    with pytest.raises(ConfigInvalid, match=f"^{name}: "):
        Recipe.from_dict({name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "steps": (0, -1, 1.5, 1e300, 10**400),
        "batch": (0, -1, 1.5, 10**9),
        "warmup": (-1, 0.5),
        "seed": (-1, 2**63, 0.5),
        "lr": (0, -1e-3, 1e6, 10**400, NAN, INFINITE),
        "class_lr": (0, -1e-3, 1e6, NAN, INFINITE),
        "clip_norm": (0, -1, NAN, INFINITE),
        "weight_decay": (-0.1, 1e3, NAN, INFINITE),
        "mask_ratio": (-0.1, 1, 1.1, NAN),
        "unmasked_share": (-0.1, 1.1, NAN),
        "label_dropout": (-0.1, 1, 1.1, NAN),
        "ema_decay": (-0.1, 1, 1.1, NAN),
        "patience": (-1, 0.5),
        "accumulate": (0, -1, 65, 1.5),
        "precision": ("fp16", "", None, 16),
        "recompute": ("all", True),
        "compile": ("model", 1),
        "graphs": ("yes", True),
        "deterministic": ("yes", True),
    }.items(),
)
def test_values_out_of_range_are_refused_by_name(name: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigInvalid, match=f"^{name}: "):
            Recipe.from_dict({name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_values_out_of_range_are_refused_in_the_constructor_too(name: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^{name}: "):
        replace(Recipe(), **{name: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
@pytest.mark.parametrize("value", ["12", True, None, [1], NAN])
def test_what_is_no_number_is_refused_in_the_constructor_too(name: str, value: object) -> None:
    with pytest.raises(ConfigInvalid, match=f"^{name}: "):
        replace(Recipe(), **{name: value})  # type: ignore[arg-type]


def test_half_a_step_is_refused_in_the_constructor() -> None:
    with pytest.raises(ConfigInvalid, match=r"^steps: 2\.5 is not a whole number"):
        Recipe(steps=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "edge",
    [
        {"steps": 1, "warmup": 0},
        {"unmasked_share": 1.0},
        {"unmasked_share": 0},
        {"mask_ratio": 0},
        {"label_dropout": 0},
        {"ema_decay": 0},
        {"batch": 1},
        {"steps": 3.0},
        {"seed": 2**63 - 1},
    ],
)
def test_values_at_the_edge_are_taken(edge: dict[str, float]) -> None:
    Recipe.from_dict(edge)


def test_an_unknown_setting_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigInvalid, match="no setting 'batch_size'"):
        Recipe.from_dict({"batch_size": 3})
    with pytest.raises(ConfigInvalid, match="Did you mean 'class_lr'"):
        Recipe.from_dict({"clas_lr": 3})


def test_the_rate_warms_up_then_falls_to_nothing() -> None:
    recipe = Recipe(steps=100, warmup=10)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[9] == max(rates)
    assert rates[-1] == pytest.approx(0.01)
    assert Recipe(steps=1, warmup=0).rate(0) == 1


def test_a_plan_survives_its_journey_to_a_worker() -> None:
    task = PlannedTask("żółw", "affiner", {"rank": 4}, "data/x", "0" * 64, (4, 6), ("a", "日本"))
    plan = TrainingPlan("backbone", "f" * 64, (task, replace(task, name="b")), Recipe(steps=3), 5, 7)
    assert TrainingPlan.from_json(plan.to_json()) == plan

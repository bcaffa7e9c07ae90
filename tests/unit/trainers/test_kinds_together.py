"""Tasks of any kinds train in one pass, and each as it would alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from affinery.adapters import kind, kinds
from affinery.composed import ComposedModel
from tests import tiny_models as tiny
from tests.unit.trainers.test_loop import MASKED, data, furthest, trained
from trainers.loop import CoTraining
from trainers.recipe import Recipe
from trainers.streams import TaskData


def task(name: str, at: int, **config: object) -> TaskData:
    small = {"rank": 3} if "rank" in kind(name).config({}).to_dict() else {}
    values = kind(name).config(small | config).to_dict()
    return data(tiny.meta(f"{name} {at}", (at, at + 2), kind=name, config=values))


@pytest.mark.parametrize("recipe", [MASKED, replace(MASKED, mask_ratio=0.0)], ids=["masked", "unmasked"])
def test_tasks_of_all_kinds_in_one_pass_end_as_each_alone(recipe: Recipe) -> None:
    together = [task(name, 4 + 2 * i) for i, name in enumerate(kinds())]
    together += [task("affiner", 30, rank=5), task("lora", 32, targets=["fc1"]), task("affiner", 34)]
    for one, adapter in zip(together, trained(together, recipe), strict=True):
        [alone] = trained([one], recipe)
        assert adapter.meta == alone.meta == one.meta
        assert furthest(alone, adapter) <= 1e-5, one.meta.task


@pytest.mark.parametrize("name", kinds())
def test_every_kind_learns(name: str) -> None:
    """The loss on one fixed batch falls, and the backbone stays as it was."""
    recipe = replace(MASKED, steps=60, lr=3e-3, class_lr=3e-2, mask_ratio=0.0, label_dropout=0.0)
    run = CoTraining(ComposedModel(tiny.backbone(), tiny.FINGERPRINT), [task(name, 4)], recipe)
    losses = [sum(run.train_step().values()) for _ in range(recipe.steps)]
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
    state, theirs = run.model.frozen_state(), tiny.backbone().state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in state.items())


@pytest.mark.parametrize("name", kinds())
def test_weight_decay_does_not_reach_the_slot_that_does_nothing(name: str) -> None:
    run = CoTraining(
        ComposedModel(tiny.backbone(), tiny.FINGERPRINT), [task(name, 4)], replace(MASKED, weight_decay=0.5)
    )
    run.run()
    run.finish()
    for group in run.model.groups.values():
        for bank in run.model.banks(group).values():
            for part, shape in bank.shapes.items():
                assert bool((bank.stack(part)[0] == shape.neutral).all())

"""Training begins from an older adapter: what fits is taken, the rest is named, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from affinery.adapters.files import Adapter, adapter_bytes, read_adapter
from affinery.backbones.files import inspect_backbone, save_backbone
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny
from tests.unit.trainers.test_session import finished, planned
from trainers.plan import TrainingPlan
from trainers.recipe import Recipe
from trainers.session import TrainingSession, adapter_name
from trainers.warm_start import begin_from


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    """Two tasks, the first of which begins from an adapter of its own shapes."""
    save_backbone(tiny.backbone(), tmp_path / "backbone")
    fingerprint = inspect_backbone(tmp_path / "backbone").fingerprint
    tasks = planned(tmp_path, "digits", (4, 6), 0), planned(tmp_path, "letters", (6, 9), 3)
    recipe = Recipe(steps=4, batch=4, warmup=1)
    cold = TrainingPlan(str(tmp_path / "backbone"), fingerprint, tasks, recipe, report_every=2, save_every=2)
    finished(TrainingSession(cold), tmp_path / "older")
    older = str(tmp_path / "older" / adapter_name(0))
    return replace(cold, tasks=(replace(tasks[0], warm_start=older), tasks[1]))


def test_a_training_begins_where_the_older_adapter_ended(plan: TrainingPlan) -> None:
    older = read_adapter(Path(str(plan.tasks[0].warm_start)))
    begun = TrainingSession(plan).model
    assert all(torch.equal(tensor, older.tensors[n]) for n, tensor in begun.adapter("digits").tensors.items())
    cold = TrainingSession(replace(plan, tasks=(replace(plan.tasks[0], warm_start=None), plan.tasks[1])))
    theirs = cold.model.adapter("letters").tensors
    assert all(torch.equal(tensor, theirs[n]) for n, tensor in begun.adapter("letters").tensors.items())


def test_a_task_that_begins_warm_learns_the_same_alone_and_beside_others(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    finished(TrainingSession(plan), tmp_path / "together")
    finished(TrainingSession(replace(plan, tasks=plan.tasks[:1])), tmp_path / "alone")
    together, alone = (read_adapter(tmp_path / f / adapter_name(0)) for f in ("together", "alone"))
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(together.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_warm_training_that_is_resumed_ends_to_the_bit_where_an_unbroken_one_ends(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    whole = finished(TrainingSession(plan), tmp_path / "whole")
    broken = TrainingSession(plan)
    broken.advance()
    broken.save(tmp_path / "half")
    resumed = TrainingSession(plan)
    resumed.restore(tmp_path / "half")
    assert finished(resumed, tmp_path / "rest") == whole


def test_what_does_not_fit_is_begun_afresh_and_named(plan: TrainingPlan, tmp_path: Path) -> None:
    older = read_adapter(Path(str(plan.tasks[0].warm_start)))
    other = dict(older.tensors) | {"class_rows": torch.ones(5, 3)}
    training = TrainingSession(replace(plan, tasks=(replace(plan.tasks[0], warm_start=None),))).training
    assert begin_from(training, "digits", Adapter(older.meta, other)) == ["class_rows"]
    layer = next(name for name in older.tensors if name.startswith("layers."))
    taken = training.model.adapter("digits").tensors
    assert torch.equal(taken[layer], older.tensors[layer])
    assert not torch.equal(taken["class_rows"], older.tensors["class_rows"])


def test_an_adapter_of_another_kind_or_without_a_layer_that_fits_is_refused(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    older = read_adapter(Path(str(plan.tasks[0].warm_start)))
    training = TrainingSession(replace(plan, tasks=(replace(plan.tasks[0], warm_start=None),))).training
    with pytest.raises(ConfigInvalid, match="of the kind lora"):
        begin_from(training, "digits", Adapter(replace(older.meta, kind="lora"), older.tensors))
    with pytest.raises(ConfigInvalid, match="no layer"):
        begin_from(training, "digits", Adapter(older.meta, {"class_rows": older.tensors["class_rows"]}))
    (tmp_path / "torn").write_bytes(adapter_bytes(older)[:-8])
    with pytest.raises(Exception, match="torn"):
        TrainingSession(replace(plan, tasks=(replace(plan.tasks[0], warm_start=str(tmp_path / "torn")),)))

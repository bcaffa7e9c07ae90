"""Tasks come, go and end early while others train, and no one feels it; every setting resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from affinery.adapters.files import Adapter, adapter_bytes
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid, UnknownName
from tests import tiny_models as tiny
from tests.unit.trainers.test_loop import DIGITS, LETTERS, MASKED, data, furthest, trained, training
from trainers.checkpoints import restore_checkpoint, save_checkpoint
from trainers.data import as_unit
from trainers.errors import CheckpointUnreadable
from trainers.learner import Learner
from trainers.loop import CoTraining
from trainers.recipe import Recipe
from trainers.streams import TaskData, TaskStream

TWIN = data(tiny.meta("twin", (30, 32), 2), 5)  # of the same kind and rank as the digits
TOUCAN = data(tiny.meta("toucan", (40, 42), 2), 6)


def steps(run: CoTraining, count: int) -> None:
    for _ in range(count):
        run.train_step()


def test_a_task_that_joins_later_ends_as_alone_and_nobody_else_feels_it() -> None:
    """One joins the digits' own group, one a group of its own; both are masked when others no longer are."""
    run = training([DIGITS], MASKED)
    steps(run, 2)
    run.join(TWIN, LETTERS)
    assert len(run.model.groups) == 2
    steps(run, 3)
    run.join(TOUCAN)
    run.run()
    assert run.step == 5 + MASKED.steps
    for adapter in run.finish():
        [expected] = trained(
            [one for one in (DIGITS, TWIN, LETTERS, TOUCAN) if one.meta == adapter.meta], MASKED
        )
        assert furthest(expected, adapter) <= 1e-5, adapter.meta.task


def test_a_task_that_leaves_takes_what_it_has_learnt_and_leaves_no_trace() -> None:
    run = training([DIGITS, TWIN, TOUCAN, LETTERS], MASKED)
    steps(run, 3)
    [left] = run.leave("twin")
    assert left.meta == TWIN.meta
    assert run.train_step().keys() == {"digits", "toucan", "letters"}
    run.leave("letters")
    assert len(run.model.groups) == 1
    run.run()
    ends = {adapter.meta.task: adapter for adapter in run.finish()}
    assert list(ends) == ["digits", "twin", "toucan", "letters"]
    assert adapter_bytes(ends["twin"]) == adapter_bytes(left)
    for task in (DIGITS, TOUCAN):
        assert furthest(trained([task], MASKED)[0], ends[task.meta.task]) <= 1e-5
    half = training([TWIN], MASKED)
    steps(half, 3)
    assert furthest(half.finish()[0], left) <= 1e-5
    assert run.model.slots.keys() == set(ends)


def test_a_task_may_leave_and_another_take_its_place_in_the_same_step() -> None:
    run = training([DIGITS, TWIN], MASKED)
    steps(run, 2)
    run.leave("digits")
    run.join(TOUCAN)
    run.run()
    ends = {adapter.meta.task: adapter for adapter in run.finish()}
    for task in (TWIN, TOUCAN):
        assert furthest(trained([task], MASKED)[0], ends[task.meta.task]) <= 1e-5


def test_the_last_cannot_leave_strangers_cannot_and_nobody_comes_twice() -> None:
    run = training([DIGITS, LETTERS], MASKED)
    with pytest.raises(UnknownName, match="zebras"):
        run.leave("zebras")
    run.leave("letters")
    with pytest.raises(ConfigInvalid, match="nobody would be left"):
        run.leave("digits")
    with pytest.raises(ConfigInvalid, match="has been trained here already"):
        run.join(LETTERS)


def test_a_task_that_cannot_join_changes_nothing() -> None:
    run, undisturbed = training([DIGITS], MASKED), training([DIGITS], MASKED)
    wrong = data(tiny.meta("wrong", (4, 6), 2))  # the digits' own rows
    with pytest.raises(ConfigInvalid, match="claim the same class rows"):
        run.join(TWIN, wrong)
    assert run.model.slots.keys() == {"digits"}
    for one in (run, undisturbed):
        one.run()
    assert [adapter_bytes(a) for a in run.finish()] == [adapter_bytes(a) for a in undisturbed.finish()]


def learner(patience: int) -> Learner:
    recipe = Recipe(steps=1000, batch=4, unmasked_share=0.2, patience=patience)
    return Learner(DIGITS, recipe, TaskStream(DIGITS, recipe, tiny.NULL, 4, 1000))


def test_a_loss_that_no_longer_falls_sends_its_task_to_its_finish() -> None:
    falling, flat, never = learner(20), learner(20), learner(0)
    for i in range(300):
        falling.advance(1.0 - i / 400)
        flat.advance(1.0)
        never.advance(1.0)
    assert falling.standing.position == never.standing.position == 300
    assert flat.standing.position == 800 + (300 - 21)
    assert not flat.masked
    assert falling.masked
    assert flat.rate < falling.rate


def test_a_task_that_ends_early_ends_as_alone_and_the_other_trains_on(tmp_path: Path) -> None:
    """The digits' loss is made to look flat: they skip to their finish, leave, and the letters go on."""
    recipe = replace(MASKED, steps=12, patience=100)

    def skip(run: CoTraining) -> None:
        run.learner("digits").standing.stale = 99
        run.learner("digits").standing.best = 1e-9

    run, one, other = (training(tasks, recipe) for tasks in ([DIGITS, LETTERS], [DIGITS], [LETTERS]))
    for each in (run, one, other):
        steps(each, 2)
    skip(run)
    skip(one)
    steps(run, 4)
    assert not run.learner("digits").masked
    assert run.learner("letters").masked
    run.run()
    one.run()
    other.run()
    assert one.step == 3 + round(12 * 0.34)
    assert run.step == 12
    assert run.finished.keys() == {"digits"}
    for adapter, expected in zip(run.finish(), [*one.finish(), *other.finish()], strict=True):
        assert furthest(expected, adapter) <= 1e-5


def test_a_broken_training_of_tasks_that_came_and_went_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    def begun() -> CoTraining:
        run = training([DIGITS, LETTERS, TWIN], MASKED)
        steps(run, 1)
        run.join(TOUCAN)
        return run

    whole = begun()
    steps(whole, 2)
    whole.leave("digits")
    steps(whole, 1)
    save_checkpoint(whole, tmp_path)
    whole.run()
    again = begun()
    restore_checkpoint(again, tmp_path)
    assert again.step == 4
    assert again.finished.keys() == {"digits"}
    again.run()
    assert [adapter_bytes(a) for a in again.finish()] == [adapter_bytes(a) for a in whole.finish()]
    with pytest.raises(CheckpointUnreadable, match="belongs to another training"):
        restore_checkpoint(training([DIGITS, LETTERS, TWIN], MASKED), tmp_path)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_is_the_whole_batch(parts: int) -> None:
    """The gradients of a step in 32 bits; in 64, a whole training."""
    whole, cut = (
        training([DIGITS, LETTERS], MASKED),
        training([DIGITS, LETTERS], replace(MASKED, accumulate=parts)),
    )
    losses = [run.train_step() for run in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(whole.trained().values(), cut.trained().values(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert float((one.grad - other.grad).norm() / one.grad.norm()) <= 1e-5
    ends = [exactly([DIGITS, LETTERS], replace(MASKED, accumulate=each)) for each in (1, parts)]
    for one, other in zip(*ends, strict=True):
        assert furthest(one, other) <= 1e-10


def exactly(tasks: list[TaskData], recipe: Recipe) -> list[Adapter]:
    """Trained in 64 bits."""
    precise = [replace(task, images=as_unit(task.images).double()) for task in tasks]
    run = CoTraining(ComposedModel(tiny.backbone().double(), tiny.FINGERPRINT), precise, recipe)
    run.run()
    return run.finish()


def test_computing_again_gives_the_same_adapters_to_the_bit() -> None:
    plain, cheap, block = (
        [adapter_bytes(one) for one in trained([DIGITS, LETTERS], replace(MASKED, recompute=level))]
        for level in ("none", "cheap", "block")
    )
    assert plain == cheap == block


def test_compiled_blocks_train_as_plain_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    inductor = ComposedModel.compiled_blocks
    monkeypatch.setattr(ComposedModel, "compiled_blocks", lambda model: inductor(model, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    brief = replace(MASKED, mask_ratio=0.0, steps=3)
    deep = {"width": 16, "depth": 3, "heads": 2, "patch": 4}
    ends = []
    for recipe in (brief, replace(brief, compile="blocks")):
        run = CoTraining(ComposedModel(tiny.backbone(config=deep), tiny.FINGERPRINT), [DIGITS], recipe)
        run.run()
        ends.append(run.finish())
    assert counters["stats"]["unique_graphs"] == 2  # the first block, and all others
    for plain, one in zip(*ends, strict=True):
        assert furthest(plain, one) <= 1e-4


OPTIONS = replace(MASKED, accumulate=3, recompute="cheap", deterministic="on", graphs="on", patience=2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_every_setting_a_broken_training_ends_with_the_same_bytes(
    precision: str, tmp_path: Path
) -> None:
    recipe = replace(OPTIONS, precision=precision)
    first = training([DIGITS, LETTERS], recipe)
    assert not first.graphs.on  # there is no GPU here
    steps(first, 3)
    save_checkpoint(first, tmp_path)
    second = training([DIGITS, LETTERS], recipe)
    restore_checkpoint(second, tmp_path)
    for run in (first, second):
        run.run()
    assert not torch.are_deterministic_algorithms_enabled()
    assert [adapter_bytes(a) for a in first.finish()] == [adapter_bytes(a) for a in second.finish()]


@pytest.mark.parametrize("when", [1, 4])
@pytest.mark.parametrize("beside", [LETTERS, TWIN], ids=["another-group", "the-same-group"])
def test_layers_whose_branch_drowns_w_x_go_on_from_a_checkpoint_with_the_same_bytes(
    beside: TaskData, when: int, tmp_path: Path
) -> None:
    recipe = replace(MASKED, precision="bf16")
    first = training([DIGITS, beside], recipe)
    banks = [bank for learner in first.learners for bank in first.banks(learner).values()]
    with torch.no_grad():
        for bank in banks:
            bank.exposed["s"].fill_(60.0)
    steps(first, when)
    save_checkpoint(first, tmp_path)
    second = training([DIGITS, beside], recipe)
    steps(second, 2)  # of findings of its own, nothing is left
    restore_checkpoint(second, tmp_path)
    first.model.look()
    assert any(bank.findings.drowned for bank in banks)
    for run in (first, second):
        run.run()
    assert [adapter_bytes(a) for a in first.finish()] == [adapter_bytes(a) for a in second.finish()]


def test_half_precision_passes_train_32_bit_tensors_near_those_of_full_precision() -> None:
    recipe = replace(MASKED, steps=12, mask_ratio=0.0)
    run = training([DIGITS], replace(recipe, precision="bf16"))
    seen: list[torch.dtype] = []
    layer = run.model.sites["blocks.0.mlp.fc1"].module
    hook = layer.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    run.run()
    hook.remove()
    [half], [full] = run.finish(), trained([DIGITS], replace(recipe, precision="fp32"))
    assert set(seen) == {torch.bfloat16}
    assert {tensor.dtype for tensor in half.tensors.values()} == {torch.float32}

    def flat(tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].flatten() for name in sorted(full.tensors)])

    start = dict(training([DIGITS], recipe).model.adapter("digits").tensors)
    moved, expected = (flat(dict(one.tensors)) - flat(start) for one in (half, full))
    assert float(torch.cosine_similarity(moved, expected, dim=0)) > 0.95


def test_the_share_of_a_step_that_waits_for_data_is_told() -> None:
    run = training([DIGITS], MASKED)
    steps(run, 2)
    assert 0 < run.clock.idle < 1
    assert run.clock.waiting < run.clock.steps

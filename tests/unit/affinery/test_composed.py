"""One backbone with many tasks: its class table, its refusals, and that nothing disturbs anything."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import affinery
from affinery.adapters.files import Adapter, AdapterMeta, adapter_bytes
from affinery.errors import (
    AdapterBackboneMismatch,
    AdapterFileInvalid,
    AffineryError,
    ConfigInvalid,
    UnknownName,
)
from tests import tiny_models as tiny


def test_a_tasks_rows_come_after_everything_and_the_null_row_keeps_its_index() -> None:
    one, two = tiny.two_tasks()
    model = tiny.composed(one, two)
    table = model.class_table()
    own = tiny.backbone().class_table
    assert table.shape == (9, 16)
    assert torch.equal(table[:4], own)
    assert model.null_row == 3
    assert torch.equal(table[4:6], one.tensors["class_rows"])
    assert torch.equal(table[6:9], two.tensors["class_rows"])


def test_rows_of_tasks_that_are_not_loaded_equal_the_null_row() -> None:
    far = tiny.adapter(tiny.meta("far", (10, 12)), 3)
    model = tiny.composed(far)
    table = model.class_table()
    null = tiny.backbone().class_table[3]
    assert all(torch.equal(table[row], null) for row in range(4, 10))
    assert torch.equal(table[10:], far.tensors["class_rows"])


def test_the_order_of_loading_does_not_move_a_row() -> None:
    one, two = tiny.two_tasks()
    assert torch.equal(tiny.composed(one, two).class_table(), tiny.composed(two, one).class_table())


def test_looking_rows_up_is_indexing_the_table() -> None:
    one, two = tiny.two_tasks()
    far = tiny.adapter(tiny.meta("far", (15, 16)), 3)
    model = tiny.composed(far, two, one)
    rows = torch.arange(16).flip(0)
    assert torch.equal(model.embed(rows), model.class_table()[rows])
    assert torch.equal(tiny.composed().embed(torch.arange(4)), tiny.backbone().class_table)


def test_a_block_far_away_costs_no_memory() -> None:
    far = tiny.adapter(tiny.meta("far", (10**12, 10**12 + 2)), 3)
    near = tiny.adapter(replace(far.meta, block=(4, 6)), 3)
    x, t = tiny.inputs(2)
    drawn = tiny.composed(far)(x, t, torch.tensor([10**12, 3]), ["far"] * 2)
    expected = tiny.composed(near)(x, t, torch.tensor([4, 3]), ["far"] * 2)
    assert torch.equal(drawn, expected)


def test_a_new_tasks_rows_start_as_the_null_row_and_its_layers_as_the_frozen_ones() -> None:
    model = tiny.composed()
    model.start(tiny.meta(), torch.Generator().manual_seed(0))
    x, t = tiny.inputs(4)
    started = model(x, t, torch.tensor([4, 5, 3, 0]), ["digits"] * 4)
    plain = tiny.backbone()(x, t, torch.tensor([3, 3, 3, 0]))
    torch.testing.assert_close(started, plain, rtol=0, atol=1e-6)


def test_a_mixed_batch_gives_each_sample_what_its_task_gives_it_alone() -> None:
    model = tiny.composed(*tiny.two_tasks())
    x, t = tiny.inputs(6)
    rows = torch.tensor([4, 7, 0, 5, 8, 3])
    tasks = ["digits", "letters", None, "digits", "letters", "letters"]
    mixed = model(x, t, rows, tasks)
    for i, task in enumerate(tasks):
        alone = model(x[i : i + 1], t[i : i + 1], rows[i : i + 1], [task])
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_tasks_in_equal_blocks_give_what_they_give_in_any_order() -> None:
    model = tiny.composed(*tiny.two_tasks())
    x, t = tiny.inputs(4)
    rows, tasks = torch.tensor([4, 5, 6, 7]), ["digits", "digits", "letters", "letters"]
    blocks = model(x, t, rows, tasks)
    shuffle = torch.tensor([2, 0, 3, 1])
    mixed = model(x[shuffle], t[shuffle], rows[shuffle], [tasks[i] for i in shuffle])
    torch.testing.assert_close(mixed, blocks[shuffle], rtol=1e-5, atol=1e-5)


def test_the_backbones_tensors_are_found_under_their_own_names() -> None:
    state = tiny.composed(*tiny.two_tasks()).frozen_state()
    theirs = tiny.backbone().state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.items())


def without(one: Adapter, text: str) -> Adapter:
    """The adapter without the tensors that have this text in their name."""
    return replace(one, tensors={name: tensor for name, tensor in one.tensors.items() if text not in name})


REFUSED: dict[str, tuple[Callable[[Adapter], Adapter], type[AffineryError], str]] = {
    "of another backbone": (
        lambda one: replace(one, meta=replace(one.meta, backbone="0" * 64)),
        AdapterBackboneMismatch,
        "trained on backbone 000000000000",
    ),
    "of another kind": (
        lambda one: replace(one, meta=replace(one.meta, kind="lora", config={})),
        AdapterFileInvalid,
        "made for other layers",
    ),
    "of a kind that there is not": (
        lambda one: replace(one, meta=replace(one.meta, kind="afiner")),
        UnknownName,
        "Did you mean 'affiner'",
    ),
    "with an unknown setting": (
        lambda one: replace(one, meta=replace(one.meta, config={"rank": 3, "speed": 1})),
        ConfigInvalid,
        "no setting 'speed'",
    ),
    "with a setting out of range": (
        lambda one: replace(one, meta=replace(one.meta, config={"rank": 10**9})),
        ConfigInvalid,
        "rank",
    ),
    "of another rank than it says": (
        lambda one: replace(one, meta=replace(one.meta, config={"rank": 4})),
        AdapterFileInvalid,
        "part down has the shape",
    ),
    "of a task that is there": (
        lambda one: replace(one, meta=replace(one.meta, task="digits")),
        ConfigInvalid,
        "in this model already",
    ),
    "with rows of another task": (
        lambda one: replace(one, meta=replace(one.meta, block=(5, 8))),
        ConfigInvalid,
        "claim the same class rows",
    ),
    "with rows of the backbone": (
        lambda one: replace(one, meta=replace(one.meta, block=(1, 4))),
        ConfigInvalid,
        "after the null row 3",
    ),
    "with another null row": (
        lambda one: replace(one, meta=replace(one.meta, null_index=2)),
        ConfigInvalid,
        "after the null row 3",
    ),
    "with another number of rows": (
        lambda one: replace(one, meta=replace(one.meta, block=(6, 8))),
        ConfigInvalid,
        "are not 3 rows",
    ),
    "with class rows of another width": (
        lambda one: replace(one, tensors={**one.tensors, "class_rows": torch.zeros(3, 15)}),
        AdapterFileInvalid,
        "class rows are not 3 × 16",
    ),
    "without class rows": (
        lambda one: without(one, "class_rows"),
        AdapterFileInvalid,
        "class rows are not 3 × 16",
    ),
    "without a layer": (
        lambda one: without(one, "blocks.0.mlp.fc1"),
        AdapterFileInvalid,
        "'blocks.0.mlp.fc1' is on one side only",
    ),
    "with a layer too many": (
        lambda one: replace(one, tensors={**one.tensors, "layers.blocks.9.mlp.fc1.a": torch.zeros(1)}),
        AdapterFileInvalid,
        "'blocks.9.mlp.fc1' is on one side only",
    ),
    "with a tensor of no layer": (
        lambda one: replace(one, tensors={**one.tensors, "layers.a": torch.zeros(1)}),
        AdapterFileInvalid,
        "tensor 'layers.a' belongs to no layer",
    ),
    "with a stem, but no condition": (
        lambda one: replace(one, tensors={**one.tensors, "stem.gate": torch.zeros(())}),
        AdapterFileInvalid,
        "tensor 'stem.gate' belongs to no layer",
    ),
    "with rows past all numbers": (
        lambda one: replace(one, meta=replace(one.meta, block=(10**30, 10**30 + 3))),
        ConfigInvalid,
        "are not 3 rows",
    ),
    "without a part": (
        lambda one: without(one, "layers.blocks.1.mlp.fc2.s"),
        AdapterFileInvalid,
        "layer 'blocks.1.mlp.fc2': the parts are",
    ),
    "with a part of another shape in the last layer": (
        lambda one: replace(one, tensors={**one.tensors, "layers.blocks.1.mlp.fc2.a": torch.zeros(1)}),
        AdapterFileInvalid,
        "part a has the shape [1], not [16]",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_changes(what: str) -> None:
    one, two = tiny.two_tasks()
    spoil, error, says = REFUSED[what]
    model = tiny.composed(one)
    before = tiny.digests(model)
    with pytest.raises(error) as refused:
        model.load(spoil(two))
    assert says in str(refused.value)
    assert tiny.digests(model) == before
    assert list(model.slots) == ["digits"]
    model.load(two)  # and the right one still goes in
    assert adapter_bytes(model.adapter("letters")) == adapter_bytes(two)


@pytest.mark.parametrize(
    "wrong",
    [
        tiny.meta("letters", (5, 8)),
        tiny.meta("letters", (6, 9), kind="lora", config={"targets": ["no.such"]}),
        tiny.meta("letters", (6, 9), config={"rank": 0}),
        tiny.meta("letters", (6, 9), backbone="0" * 64),
        tiny.meta("digits", (6, 9)),
    ],
)
def test_a_task_that_does_not_fit_is_not_started_and_nothing_changes(wrong: AdapterMeta) -> None:
    model = tiny.composed(tiny.two_tasks()[0])
    before = tiny.digests(model)
    with pytest.raises(AffineryError):
        model.start(wrong, torch.Generator())
    assert tiny.digests(model) == before


def test_older_adapters_keep_their_bytes_when_wider_ones_join() -> None:
    one, two = tiny.two_tasks()
    wide = tiny.adapter(tiny.meta("wide", (9, 13), rank=40), 5)
    model = tiny.composed(one, two, wide)
    for adapter in (one, two, wide):
        assert adapter_bytes(model.adapter(adapter.meta.task)) == adapter_bytes(adapter)


def test_classes_are_found_by_name_and_by_position() -> None:
    task = tiny.composed(tiny.two_tasks()[0]).task("digits")
    assert task.row("digits 1") == task.row(1) == 5


@pytest.mark.parametrize("label", ["digits 7", 2, -1])
def test_a_class_that_a_task_does_not_have_is_told_with_those_it_has(label: str | int) -> None:
    with pytest.raises(UnknownName, match=r"Known: digits 0, digits 1"):
        tiny.composed(tiny.two_tasks()[0]).task("digits").row(label)


def test_a_task_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"Did you mean 'digits'\? Known: digits"):
        tiny.composed(tiny.two_tasks()[0]).task("digit")


def test_images_are_drawn_through_the_front_door() -> None:
    model = tiny.composed(*tiny.two_tasks())
    images = affinery.draw(model, "letters", "letters 2", n=3, seed=1)
    assert images.shape == (3, 1, 8, 8)
    assert torch.equal(images, affinery.draw(model, "letters", 2, n=3, seed=1))
    with pytest.raises(ConfigInvalid, match="nothing to draw"):
        affinery.draw(model, "letters", 2, n=0)


def test_a_task_that_is_off_is_drawn_as_the_backbone_for_that_while() -> None:
    model = tiny.composed(*tiny.two_tasks())
    x, t = tiny.inputs(2)
    rows = torch.tensor([3, 3])
    on = model(x, t, rows, ["digits", "letters"])
    with model.disable("digits"):
        off = model(x, t, rows, ["digits", "letters"])
        with model.disable():
            assert torch.equal(model(x, t, rows, ["digits", "letters"]), tiny.backbone()(x, t, rows))
        assert torch.equal(model(x, t, rows, ["digits", "letters"]), off)
    torch.testing.assert_close(off[:1], tiny.backbone()(x, t, rows)[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(off[1:], on[1:], rtol=1e-5, atol=1e-5)
    assert torch.equal(model(x, t, rows, ["digits", "letters"]), on)
    with pytest.raises(UnknownName), model.disable("numbers"):
        pass


def test_a_tasks_slot_and_rows_are_free_again_once_it_is_gone() -> None:
    one, two = tiny.two_tasks()
    model = tiny.composed(one, two)
    model.unload("digits")
    assert list(model.slots) == ["letters"]
    assert len(model.class_table()) == 9
    other = tiny.adapter(replace(one.meta, task="other"), 5)
    model.load(other)
    assert adapter_bytes(model.adapter("other")) == adapter_bytes(other)
    assert adapter_bytes(model.adapter("letters")) == adapter_bytes(two)


def test_sixty_four_tasks_come_and_go_without_moving_a_bit_of_the_first() -> None:
    first = tiny.adapter(tiny.meta("first", (4, 5)), 1)
    model = tiny.composed(first)
    x, t = tiny.inputs(1)
    before = model(x, t, torch.tensor([4]), ["first"])
    for i in range(63):
        model.load(replace(first, meta=replace(first.meta, task=f"task {i}", block=(5 + i, 6 + i))))
    assert torch.equal(model(x, t, torch.tensor([4]), ["first"]), before)
    for i in range(63):
        model.unload(f"task {i}")
    assert torch.equal(model(x, t, torch.tensor([4]), ["first"]), before)
    with pytest.raises(UnknownName, match="Known: first"):
        model.unload("task 3")


def test_a_merged_task_is_the_weighted_sum_of_its_members_in_one_layer() -> None:
    """With one layer adapted the sum can be read off the output, as nothing comes after it."""
    config = {"rank": 3, "targets": ["final_layer.linear"]}
    one = tiny.adapter(tiny.meta("one", (4, 6), config=config), 1)
    two = tiny.adapter(tiny.meta("two", (6, 8), config=config | {"rank": 2}), 2)
    model = tiny.composed(one, two)
    merged = model.merge("both", {"one": 0.6, "two": -1.5}, (8, 12))
    assert merged.meta.class_names == ("one/one 0", "one/one 1", "two/two 0", "two/two 1")
    assert merged.meta.config["rank"] == 5
    x, t = tiny.inputs(4)
    rows = torch.full((4,), model.null_row)
    outputs = {name: model(x, t, rows, [name] * 4) for name in (None, "one", "two", "both")}
    frozen = outputs[None]
    expected = frozen + 0.6 * (outputs["one"] - frozen) - 1.5 * (outputs["two"] - frozen)
    torch.testing.assert_close(outputs["both"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.embed(torch.arange(8, 12)), model.embed(torch.arange(4, 8)))


def test_a_merged_task_of_one_member_at_full_weight_is_that_member() -> None:
    model = tiny.composed(*tiny.two_tasks())
    model.merge("copy", {"letters": 1.0}, (9, 12))
    x, t = tiny.inputs(3)
    alone = model(x, t, torch.tensor([6, 7, 8]), ["letters"] * 3)
    copied = model(x, t, torch.tensor([9, 10, 11]), ["copy"] * 3)
    torch.testing.assert_close(copied, alone, rtol=1e-5, atol=1e-5)


def test_members_with_other_targets_are_merged_on_all_of_their_layers() -> None:
    one = tiny.adapter(tiny.meta("one", (4, 6), config={"rank": 3, "targets": ["qkv"]}), 1)
    two = tiny.adapter(tiny.meta("two", (6, 8), config={"rank": 2, "parts": ["a", "low-rank"]}), 2)
    model = tiny.composed(one, two)
    model.merge("both", {"one": 1.0, "two": 0.0}, (8, 12))
    x, t = tiny.inputs(2)
    rows = torch.tensor([4, 5])
    torch.testing.assert_close(
        model(x, t, rows, ["both"] * 2), model(x, t, rows, ["one"] * 2), rtol=1e-5, atol=1e-5
    )


def test_tasks_that_cannot_be_merged_are_refused_and_nothing_changes() -> None:
    one, two = tiny.two_tasks()
    model = tiny.composed(one, two, tiny.adapter(tiny.meta("low", (9, 10), kind="lora", config={}), 3))
    before = tiny.digests(model)
    for weights, says in (
        ({}, "no task to merge"),
        ({"digits": 1.0, "low": 1.0}, "several kinds: affiner, lora"),
        ({"numbers": 1.0}, "There is no task"),
    ):
        with pytest.raises(AffineryError, match=says):
            model.merge("both", weights, (20, 30))
    with pytest.raises(ConfigInvalid, match="claim the same class rows"):
        model.merge("both", {"digits": 1.0, "letters": 1.0}, (4, 9))
    assert tiny.digests(model) == before


def test_a_plan_that_was_kept_is_not_used_once_its_task_has_gone_or_moved() -> None:
    one, two = tiny.two_tasks()
    other = tiny.adapter(tiny.meta("other", (10, 12)), 5)
    model = tiny.composed(one, two)
    x, t = tiny.inputs(2)
    rows = torch.tensor([3, 3])
    plan = model.plan(["digits", "letters"])
    before = model.denoise(x, t, rows, plan)
    model.load(replace(one, meta=replace(one.meta, task="beside", block=(20, 22))))
    assert torch.equal(model.denoise(x, t, rows, plan), before)  # nothing has moved
    with model.disable("digits"), pytest.raises(ConfigInvalid, match="switched off or on"):
        model.denoise(x, t, rows, plan)
    model.unload("digits")
    model.load(other)  # in the place of the one that has gone
    with pytest.raises(UnknownName, match="digits"):
        model.denoise(x, t, rows, plan)
    model.fold("other")
    with pytest.raises(ConfigInvalid, match="folded into it"):
        model.denoise(x, t, rows, replace(plan, tasks=plan.tasks[1:]))


def test_while_a_task_is_folded_nothing_is_read_out_of_the_weights_or_switched_off() -> None:
    model = tiny.composed(tiny.two_tasks()[0])
    model.fold("digits")
    x, t = tiny.inputs(1)
    with pytest.raises(ConfigInvalid, match="unfold it first"):
        model.adapter("digits")
    with pytest.raises(ConfigInvalid, match="unfold it first"):
        model.frozen_state()
    with pytest.raises(ConfigInvalid, match="unfold it first"):
        model.merge("copy", {"digits": 1.0}, (10, 12))
    with model.disable(), pytest.raises(ConfigInvalid, match="nothing else can be drawn"):
        model(x, t, torch.tensor([3]), ["digits"])


def test_a_task_that_trains_goes_on_training_when_others_of_its_config_join() -> None:
    """The optimizer holds its stacks: they are neither replaced nor shared with one that does not train."""
    first = tiny.adapter(tiny.meta("first", (4, 5)), 1)
    model = tiny.composed(first)
    task = model.task("first")
    stacks = [bank.stack(part) for bank in model.banks(model.groups[task.group]).values() for part in "ab"]
    for stack in stacks:
        stack.requires_grad_(True)
    optimizer = torch.optim.AdamW(stacks, lr=0.1, weight_decay=0.5)
    x, t = tiny.inputs(1)
    for i in range(3):
        joining = replace(first, meta=replace(first.meta, task=f"task {i}", block=(5 + i, 6 + i)))
        model.load(joining)
        before = adapter_bytes(model.adapter("first"))
        optimizer.zero_grad()
        model(x, t, torch.tensor([4]), ["first"]).square().sum().backward()
        optimizer.step()
        assert adapter_bytes(model.adapter("first")) != before
        assert adapter_bytes(model.adapter(f"task {i}")) == adapter_bytes(joining)


@pytest.mark.parametrize("name", ["a.b/c", "é" * 3000, "日本 👩\u200d🔬", " ", ".."])
def test_a_task_may_have_any_name(name: str) -> None:
    one = tiny.two_tasks()[0]
    model = tiny.composed(replace(one, meta=replace(one.meta, task=name)))
    assert model.adapter(name).meta.task == name
    model.unload(name)
    assert not model.groups


@pytest.mark.parametrize("name", ["", "\ud800"])
def test_what_is_no_name_is_refused_and_nothing_changes(name: str) -> None:
    one, two = tiny.two_tasks()
    model = tiny.composed(one)
    with pytest.raises(ConfigInvalid, match="is no name"):
        model.load(replace(two, meta=replace(two.meta, task=name)))
    assert list(model.slots) == ["digits"]
    assert len(model.groups) == 1


def test_a_backbone_in_half_precision_leaves_the_tasks_their_own_to_the_bit() -> None:
    model = tiny.composed(*tiny.two_tasks(), base=tiny.backbone().to(torch.bfloat16))
    for adapter in tiny.two_tasks():
        assert adapter_bytes(model.adapter(adapter.meta.task)) == adapter_bytes(adapter)
    assert model.class_table().dtype == model.embed(torch.tensor([4])).dtype == torch.bfloat16
    x, t = tiny.inputs(2)
    assert model(x.bfloat16(), t, torch.tensor([4, 6]), ["digits", "letters"]).dtype == torch.bfloat16


def test_a_copy_of_a_compiled_model_is_a_model_of_its_own() -> None:
    one, two = tiny.two_tasks()
    model = tiny.composed(one, two).compiled(backend="eager")
    x, t = tiny.inputs(1)
    drawn = model(x, t, torch.tensor([4]), ["digits"])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - its own bytes
        found = copied(x, t, torch.tensor([4]), ["digits"])
        torch.testing.assert_close(found, drawn, rtol=1e-5, atol=1e-5)
        copied.unload("letters")
        copied.load(replace(one, meta=replace(one.meta, task="again", block=(20, 22))))
        assert copied.task("again").group == copied.task("digits").group
        assert list(model.slots) == ["digits", "letters"]
    torch._dynamo.reset()


def test_a_compiled_model_outlives_any_number_of_loads() -> None:
    """PyTorch compiles one function anew so many times only, and then refuses."""
    one, two = tiny.two_tasks()
    model = tiny.composed(one).compiled(backend="eager")
    x, t = tiny.inputs(2)
    rows = torch.tensor([4, 6])
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        model(x, t, rows, ["digits", None])
        model.load(two)
        found = model(x, t, rows, ["digits", "letters"])
    torch.testing.assert_close(
        found, tiny.composed(one, two)(x, t, rows, ["digits", "letters"]), rtol=1e-4, atol=1e-4
    )
    torch._dynamo.reset()


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1"])
def test_a_weight_that_is_no_number_is_refused(weight: Any) -> None:
    model = tiny.composed(tiny.two_tasks()[0])
    with pytest.raises(ConfigInvalid, match="is not a number"):
        model.merge("both", {"digits": weight}, (10, 12))


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        ("affiner", {"rank": 2, "targets": ["qkv"]}, {"parts": ["a"], "targets": ["fc1"]}),
        ("difffit", {"blocks": 0}, {"blocks": 1, "first_block": 1}),
    ],
)
def test_members_without_anything_in_common_are_merged(
    kind: str, one: dict[str, Any], two: dict[str, Any]
) -> None:
    """Where the merged settings reach further than the members', nothing happens."""
    model = tiny.composed(
        tiny.adapter(tiny.meta("one", (4, 6), kind=kind, config=one), 1),
        tiny.adapter(tiny.meta("two", (6, 8), kind=kind, config=two), 2),
    )
    model.merge("both", {"one": 1.0, "two": 0.0}, (8, 12))
    x, t = tiny.inputs(2)
    rows = torch.tensor([4, 5])
    torch.testing.assert_close(
        model(x, t, rows, ["both"] * 2), model(x, t, rows, ["one"] * 2), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_that_others_compute_again_after_its_pass_is_refused(reentrant: bool) -> None:
    """Outside a pass no task is known: BitFit's gradients would be those of another function."""
    model = tiny.composed(tiny.adapter(tiny.meta("digits", kind="bitfit", config={}), 1))
    for bank in model.banks(model.groups[1]).values():
        bank.requires_grad_(True)
    block = model.backbone.get_submodule("blocks.1")
    plain = block.forward
    block.forward = lambda *args: checkpoint(plain, *args, use_reentrant=reentrant)
    x, t = tiny.inputs(1)
    loss = model(x, t, torch.tensor([4]), ["digits"]).square().sum()
    with pytest.raises(ConfigInvalid, match=r"ComposedModel\.recompute"):
        loss.backward()


def test_what_cannot_be_folded_is_named_with_its_reason() -> None:
    model = tiny.composed(tiny.two_tasks()[0])
    left = model.fold("digits")
    assert left.reasons["blocks.0.mlp.fc1"] == "its ReLU branch is not linear"
    with pytest.raises(ConfigInvalid, match="'digits' is folded into it; unfold it first"):
        model.fold("digits")
    with pytest.raises(ConfigInvalid, match="unfold it first"):
        model.unload("digits")
    model.unfold()
    with pytest.raises(ConfigInvalid, match="no task is folded"):
        model.unfold()

"""The packed class table is made once, and never outlives what it was made of."""

from __future__ import annotations

import pytest
import torch

from affinery.class_table import PackedTable
from affinery.composed import ComposedModel
from tests import tiny_models as tiny

ROWS = torch.tensor([0, 3, 4, 5, 6, 8])


@pytest.fixture
def model() -> ComposedModel:
    return tiny.composed(*tiny.two_tasks())


def packed(model: ComposedModel) -> PackedTable | None:
    return model._table


def test_batch_after_batch_uses_one_table(model: ComposedModel) -> None:
    first = model.embed(ROWS)
    table = packed(model)
    assert torch.equal(model.embed(ROWS), first)
    assert packed(model) is table
    assert torch.equal(first, model.class_table()[ROWS])


def test_what_is_set_in_place_loaded_or_taken_out_is_seen_at_once(model: ComposedModel) -> None:
    model.embed(ROWS)
    with torch.no_grad():
        model.task("digits").rows.add_(1)
    assert torch.equal(model.embed(ROWS), model.class_table()[ROWS])
    model.unload("digits")
    assert torch.equal(model.embed(ROWS), model.class_table()[ROWS])
    model.load(tiny.adapter(tiny.meta("others", (4, 6)), 7))
    assert torch.equal(model.embed(ROWS), model.class_table()[ROWS])
    with torch.no_grad():
        model.backbone.class_table.mul_(2)
    assert torch.equal(model.embed(ROWS), model.class_table()[ROWS])


def test_another_number_type_is_seen_at_once(model: ComposedModel) -> None:
    model.embed(ROWS)
    model.double()
    assert model.embed(ROWS).dtype == torch.float64


def test_while_rows_train_each_pass_has_its_own_graph(model: ComposedModel) -> None:
    with torch.no_grad():
        model.embed(ROWS)
    rows = model.task("digits").rows.requires_grad_(True)
    for _ in range(2):
        model.embed(ROWS).sum().backward()
    assert packed(model) is None
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.full_like(rows, 2.0))
    with torch.no_grad():
        assert not model.embed(ROWS).requires_grad


def test_a_table_made_in_inference_mode_serves_a_training(model: ComposedModel) -> None:
    with torch.inference_mode():
        model.embed(ROWS)
    weight = torch.ones(16, requires_grad=True)
    (model.embed(ROWS) * weight).sum().backward()
    assert weight.grad is not None


def test_rows_whose_changes_nobody_counts_are_packed_each_time() -> None:
    with torch.inference_mode():
        parts = [torch.zeros(4, 2), torch.ones(2, 2)]
        table = PackedTable(parts, [(4, 6)])
    assert not table.serves(parts)
    assert torch.equal(table.look_up(torch.tensor([3, 5])), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))

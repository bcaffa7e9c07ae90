"""A merged task changes every layer by the weighted sum of its members' changes, whatever the kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import affinery
from affinery.adapters.layers import Convolution, widths
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from affinery.merge_recipe import Weight, merges_of, recipe_of
from affinery.merging import FIRST_ROW
from tests import tiny_models as tiny

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "affiner": ({"rank": 2}, {"rank": 3, "parts": ["a", "low-rank"]}),
    "lora": ({"rank": 2, "alpha": 3.0}, {"rank": 4}),
    "bitfit": ({}, {}),
    "difffit": ({"blocks": 1}, {"blocks": 2}),
    "full": ({}, {}),
    "adaptformer-parallel": ({"rank": 2}, {"rank": 3, "scale": 0.5}),
    "adaptformer-sequential": ({"rank": 2}, {"rank": 3}),
}


def model_of(kind: str, dtype: torch.dtype) -> ComposedModel:
    model = ComposedModel(tiny.backbone().to(dtype), tiny.FINGERPRINT)
    for seed, (name, block) in enumerate({"one": (4, 6), "two": (6, 9)}.items()):
        meta = tiny.meta(name, block, kind=kind, config=CONFIGS[kind][seed])
        model.load(tiny.adapter(meta, seed + 1))
    return model


def layer_input(model: ComposedModel, name: str, dtype: torch.dtype) -> Tensor:
    module = model.sites[name].module
    shape = (3, 1, 8, 8) if isinstance(module, Convolution) else (3, 4, widths(module)[0])
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def of_layer(model: ComposedModel, name: str, x: Tensor, task: str | None) -> Tensor:
    """What one module gives for a task, the modules within it being the frozen ones."""
    site, shares = model.adapted[name], model.plan([task] * len(x)).shares
    with torch.no_grad():
        frozen: Tensor = site.base(x)
        bank = site.bank(shares[0].group) if shares else None
        if bank is None:
            return frozen
        if bank.kind.replaces:
            return site._run(shares[0], x)
        return site._adapt(bank, shares[0], x, frozen)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_layer_changes_by_the_weighted_sum_of_changes(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    """By task and by layer: the first task has other weights in queries and in the first block's MLP."""
    model = model_of(kind, dtype)
    mlp = "blocks.0.mlp*" if "adaptformer" in kind else "blocks.0.mlp.fc1"
    layers = ((mlp, -0.5),) if kind in ("affiner", "bitfit", "full") or "adapt" in kind else ()
    model.merge("both", {"one": Weight(0.6, layers), "two": -1.25})
    for name in model.adapted:
        x = layer_input(model, name, dtype)
        frozen = of_layer(model, name, x, None)
        own = -0.5 if layers and name.startswith(mlp.rstrip("*")) else 0.6
        expected = frozen
        for task, weight in (("one", own), ("two", -1.25)):
            expected = expected + weight * (of_layer(model, name, x, task) - frozen)
        found = of_layer(model, name, x, "both")
        assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance, name
        assert not torch.equal(found, frozen)


def test_the_last_group_of_layers_that_fits_gives_the_weight() -> None:
    model = model_of("affiner", torch.float64)
    model.merge("some", {"one": Weight(0.0, (("blocks.*", 1.0), ("qkv", 0.0)))})
    x, _ = tiny.inputs(3)
    for name, whole in (("blocks.1.attn.qkv", False), ("blocks.1.mlp.fc2", True)):
        x = layer_input(model, name, torch.float64)
        same_as = "one" if whole else None
        assert torch.allclose(
            of_layer(model, name, x, "some"), of_layer(model, name, x, same_as), rtol=0, atol=1e-12
        )


def test_the_classes_of_all_members_are_reached_through_the_sum_and_their_own_stay() -> None:
    model = model_of("affiner", torch.float32)
    merged = model.merge("both", {"one": 0.5, "two": 0.5})
    assert merged.meta.block == (FIRST_ROW, FIRST_ROW + 5)
    names = ["one/one 0", "one/one 1", "two/two 0", "two/two 1", "two/two 2"]
    assert list(merged.meta.class_names) == names
    own = torch.tensor([model.task("one").row(1), model.task("two").row(2)])
    through = torch.tensor([merged.row("one/one 1"), merged.row("two/two 2")])
    assert torch.equal(model.embed(own), model.embed(through))
    again = model.merge("other", {"two": 1.0})
    assert again.meta.block == (FIRST_ROW + 5, FIRST_ROW + 8)
    later = tiny.adapter(tiny.meta("later", (9, 11)), 7)
    model.load(later)  # a task that the registry gives the next rows finds them free
    assert affinery.draw(model, "both", "one/one 0", steps=2).shape == (1, 1, 8, 8)


def test_sums_that_are_none_are_refused_and_nothing_changes() -> None:
    model = model_of("affiner", torch.float32)
    before = tiny.digests(model)
    with pytest.raises(ConfigInvalid, match="no layer that 'one' changes"):
        model.merge("both", {"one": Weight(1.0, (("conv", 0.5),))})
    with pytest.raises(ConfigInvalid, match="is not a number"):
        model.merge("both", {"one": float("nan")})
    prompts = ComposedModel(tiny.backbone(), tiny.FINGERPRINT)
    prompts.load(tiny.adapter(tiny.meta("one", (4, 6), kind="vpt-deep", config={"depth": 1}), 1))
    with pytest.raises(ConfigInvalid, match="vpt-deep cannot be summed exactly"):
        prompts.merge("both", {"one": 1.0})
    assert tiny.digests(model) == before


def test_a_recipe_is_read_as_it_was_written_and_nonsense_is_refused() -> None:
    good = {"merges": [{"name": "ink", "of": [{"member": 1, "weight": 0.5, "layers": [["qkv", 0.25]]}]}]}
    assert recipe_of(merges_of(good, 2)) == good
    nonsense: tuple[dict[str, Any], ...] = (
        {},
        {"merges": []},
        {"merges": [{"name": "ink", "of": []}]},
        {"merges": [{"name": "ink", "of": [{"member": 2, "weight": 1.0}]}]},
        {"merges": [{"name": "ink", "of": [{"member": 0, "weight": "1"}]}]},
        {"merges": [{"name": "ink", "of": [{"member": 0, "weight": 1}, {"member": 0, "weight": 1}]}]},
        {"merges": [good["merges"][0], good["merges"][0]]},
    )
    for bad in nonsense:
        with pytest.raises(ValueError, match=r"."):
            merges_of(bad, 2)

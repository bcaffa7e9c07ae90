"""Spatial conditions: a stem of a task's own, silent at the start, beside class tasks in one batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from affinery.adapters.files import Adapter, AdapterMeta, adapter_bytes, read_adapter
from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, on_meta
from affinery.backbones.unet_condition import named_spec
from affinery.composed import ComposedModel
from affinery.conditions import stem_for
from affinery.errors import AdapterFileInvalid, ConfigInvalid
from tests import tiny_models as tiny
from tests import tiny_unets

CANNY = {"name": "canny", "channels": 1}
MAP = {"name": "segmentation", "channels": 3}
BACKBONES = {
    "DiT": lambda: tiny.backbone(),
    "U-Net": lambda: tiny_unets.built(tiny_unets.unet_spec()),
    "latent U-Net": lambda: tiny_unets.built(tiny_unets.latent_spec()),
    "text U-Net": lambda: tiny_unets.built(tiny_unets.text_spec()),
}
every_backbone = pytest.mark.parametrize("name", BACKBONES)


def edges(block: tuple[int, int] = (4, 6), condition: dict[str, Any] = CANNY) -> AdapterMeta:
    return tiny.meta("edges", block, condition=condition)


def pictures(count: int, channels: int = 1, size: int = 8, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(count, channels, size, size, generator=generator) * 2 - 1)


def x_and_t(base: Backbone, count: int) -> tuple[Tensor, Tensor]:
    shape = base.spec.latent_shape()
    return tiny.inputs(count, size=shape[1], channels=shape[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stem_and_the_affiners_of_the_down_blocks_have_the_papers_number_of_parameters(
    channels: int,
) -> None:
    """DiffScaler: 6.85 M, of which 6.76 M are Affiners with d = 32 on SD-1.5's down blocks."""
    spec = named_spec("sd15-unet")
    model = ComposedModel(on_meta(spec, architecture(spec.arch)), tiny.FINGERPRINT)
    meta = AdapterMeta(
        "canny",
        "affiner",
        {"rank": 32, "targets": ["down_blocks.*"]},
        tiny.FINGERPRINT,
        0,
        (1, 2),
        ("all",),
        condition={"name": "canny", "channels": channels},
    )
    model.start(meta, torch.Generator())
    tensors = model.adapter("canny").tensors
    stem = sum(t.numel() for name, t in tensors.items() if name.startswith("stem."))
    layers = sum(t.numel() for name, t in tensors.items() if name.startswith("layers."))
    assert round(layers / 1e6, 2) == 6.76
    assert round((layers + stem) / 1e6, 2) == 6.85


@every_backbone
def test_at_the_start_a_condition_changes_no_bit(name: str) -> None:
    base = BACKBONES[name]()
    x, t = x_and_t(base, 3)
    null = torch.full((3,), base.spec.null_index)
    with torch.no_grad():
        bare = base(x, t, null)
        model = ComposedModel(base, tiny.FINGERPRINT)
        model.start(edges(), torch.Generator().manual_seed(0))
        hint = model.hint(["edges"] * 3, pictures(3, size=base.spec.image_size))
        assert hint is not None
        assert hint.shape == (3, *base.hint_shape())
        assert torch.equal(model.denoise(x, t, null, model.plan(["edges"] * 3), hint=hint), bare)


@every_backbone
def test_a_trained_condition_says_where_things_are(name: str) -> None:
    base = BACKBONES[name]()
    model = tiny.composed(trained(edges(), base=BACKBONES[name]()), base=base)
    x, t = x_and_t(base, 2)
    rows, plan, size = torch.tensor([4, 4]), model.plan(["edges"] * 2), base.spec.image_size
    with torch.no_grad():
        one, other = (
            model.denoise(x, t, rows, plan, hint=model.hint(["edges"] * 2, pictures(2, size=size, seed=seed)))
            for seed in (1, 2)
        )
    assert (one - other).abs().max() > 1e-4


def trained(meta: AdapterMeta, seed: int = 1, base: Backbone | None = None) -> Adapter:
    return tiny.adapter(meta, seed, base)


def mixed_model() -> ComposedModel:
    """Two condition tasks of different channels and a class task, on a U-Net."""
    made = {
        "edges": edges((4, 5)),
        "maps": tiny.meta("maps", (5, 7), condition=MAP),
        "digits": tiny.meta("digits", (7, 9)),
    }
    adapters = [
        trained(meta, seed, tiny_unets.built(tiny_unets.unet_spec()))
        for seed, meta in enumerate(made.values())
    ]
    return tiny.composed(*adapters, base=tiny_unets.built(tiny_unets.unet_spec()))


def test_a_batch_mixes_tasks_of_several_conditions_and_of_none() -> None:
    model = mixed_model()
    tasks = ["digits", "edges", None, "maps", "edges", "maps"]
    rows = torch.tensor([8, 4, 1, 5, 4, 6])
    grey, colour = pictures(2), pictures(2, channels=3)
    conditions = [None, grey[0], None, colour[0], grey[1], colour[1]]
    x, t = tiny.inputs(6)
    with torch.no_grad():
        mixed = model.denoise(x, t, rows, model.plan(tasks), hint=model.hint(tasks, conditions))
        for i, task in enumerate(tasks):
            hint = model.hint([task], [conditions[i]])
            alone = model.denoise(x[i : i + 1], t[i : i + 1], rows[i : i + 1], model.plan([task]), hint=hint)
            torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_stem_survives_saving_and_loading_to_the_bit(tmp_path: Path) -> None:
    adapter = trained(edges(), base=tiny_unets.built(tiny_unets.unet_spec()))
    (tmp_path / "a").write_bytes(adapter_bytes(adapter))
    found = read_adapter(tmp_path / "a")
    assert found.meta == adapter.meta
    model = tiny.composed(found, base=tiny_unets.built(tiny_unets.unet_spec()))
    assert adapter_bytes(model.adapter("edges")) == adapter_bytes(adapter)
    assert "stem.gate" in found.tensors


def test_the_file_of_a_class_task_says_nothing_of_conditions() -> None:
    assert "condition" not in tiny.meta().to_json()
    assert "image_size" not in tiny.meta().to_json()


def test_unloading_takes_the_stem_away_and_leaves_the_others() -> None:
    model = mixed_model()
    before = adapter_bytes(model.adapter("maps"))
    model.unload("edges")
    assert not any(name.startswith("_stems." + b"edges".hex()) for name, _ in model.named_parameters())
    assert adapter_bytes(model.adapter("maps")) == before
    assert model.hint(["digits"], [None]) is None


def test_a_disabled_task_is_told_no_condition() -> None:
    model = mixed_model()
    with model.disable("edges"):
        assert model.hint(["edges"], pictures(1)) is None


@pytest.mark.parametrize("change", ["missing", "shape", "more"])
def test_a_stem_that_does_not_fit_is_refused_and_nothing_has_changed(change: str) -> None:
    adapter = trained(edges())
    tensors = dict(adapter.tensors)
    if change == "missing":
        del tensors["stem.gate"]
    elif change == "shape":
        tensors["stem.convs.0.weight"] = torch.zeros(16, 2, 3, 3)
    else:
        tensors["stem.convs.9.weight"] = torch.zeros(1)
    model = tiny.composed()
    before = set(dict(model.named_parameters()))
    with pytest.raises(AdapterFileInvalid, match="condition stem does not fit"):
        model.load(replace(adapter, tensors=tensors))
    assert set(dict(model.named_parameters())) == before


def test_a_stem_in_the_file_of_a_class_task_is_refused(tmp_path: Path) -> None:
    adapter = tiny.adapter(tiny.meta())
    tensors = dict(adapter.tensors) | {"stem.gate": torch.ones(())}
    (tmp_path / "a").write_bytes(adapter_bytes(Adapter(adapter.meta, tensors)))
    with pytest.raises(AdapterFileInvalid, match=r"'stem\.gate' belongs to no layer"):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    "picture", [{"condition": {"name": "canny"}}, {"condition": {"name": 1, "channels": 1}},
                {"condition": {"name": "canny", "channels": 17}}, {"image_size": 0}, {"image_size": True}],
)  # fmt: skip
def test_a_record_with_a_condition_or_a_size_that_is_none_is_refused(
    tmp_path: Path, picture: dict[str, Any]
) -> None:
    adapter = tiny.adapter(tiny.meta())
    (tmp_path / "a").write_bytes(adapter_bytes(Adapter(replace(adapter.meta, **picture), adapter.tensors)))
    with pytest.raises(AdapterFileInvalid, match="record cannot be read"):
        read_adapter(tmp_path / "a")


def test_a_condition_task_without_a_picture_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="given no picture"):
        mixed_model().hint(["edges", "digits"], [None, None])


def test_a_picture_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"its shape is \[3, 8, 8\], but it must be 1 × 8 × 8"):
        mixed_model().hint(["edges"], pictures(1, channels=3))


def test_a_task_with_a_condition_is_not_merged() -> None:
    with pytest.raises(ConfigInvalid, match="'edges' has a condition"):
        mixed_model().merge("both", {"edges": 0.5, "digits": 0.5}, (20, 23))


def test_a_size_that_the_architecture_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="image_size"):
        tiny.composed().start(tiny.meta(image_size=10), torch.Generator())


def test_the_stem_brings_a_picture_down_by_any_factor() -> None:
    base = tiny.backbone(config={"width": 16, "depth": 1, "heads": 2, "patch": 3}, image_size=9)
    stem = stem_for(base, CANNY).initialise(torch.Generator().manual_seed(0))
    assert stem(torch.zeros(2, 1, 9, 9)).shape == (2, 16, 3, 3)

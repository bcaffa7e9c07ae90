"""What is estimated without weights is what a real training of the same model needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from affinery.adapters import kind, kinds
from affinery.adapters.files import AdapterMeta, adapter_bytes
from affinery.backbones.contract import BackboneSpec
from affinery.backbones.files import save_backbone
from affinery.backbones.imports import import_backbone
from affinery.composed import ComposedModel
from affinery.diffusion.objective import l_simple, without_variance
from affinery.errors import BackboneFileInvalid, ConfigInvalid, UnknownName
from affinery.estimate import (
    FINGERPRINT,
    Cost,
    Estimator,
    Setup,
    Step,
    named_architectures,
    spec_for,
)
from affinery.meta_device import SavedTensors
from tests import tiny_models as tiny
from tests.tiny_unets import UNET, built, text_spec, unet_spec
from trainers.loop import CoTraining
from trainers.recipe import Recipe
from trainers.streams import TaskData

BATCH, CLASSES, KEPT = 3, 2, 0.5
TWICE_ITS_FORWARD = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda _grad, query, key, value, *_, **__: 2 * sdpa_flop_count(query, key, value)
    )
}
LEARNED = tiny.spec(config={"width": 16, "depth": 2, "heads": 2, "patch": 4, "learn_sigma": True})
SPECS = {"dit": tiny.spec(), "dit with a variance": LEARNED, "unet": unet_spec(), "text unet": text_spec()}


def possible(name: str, estimator: Estimator) -> bool:
    """Whether a kind is defined on a backbone."""
    try:
        estimator.count(name, {})
    except ConfigInvalid:
        return False
    return True


ON = {backbone: Estimator(spec) for backbone, spec in SPECS.items()}
CASES = [(name, backbone) for name in kinds() for backbone in SPECS if possible(name, ON[backbone])]
every_kind_on_every_backbone = pytest.mark.parametrize(("name", "backbone"), CASES)


def settings(name: str) -> dict[str, Any]:
    """Small ones, where the kind has a size."""
    return {"rank": 2} if "rank" in kind(name).config({}).to_dict() else {}


@cache
def estimator(backbone: str) -> Estimator:
    spec = SPECS[backbone]
    return Estimator(spec, Setup(CLASSES, BATCH, KEPT if spec.arch == "dit" else 0.0))


@cache
def cost(name: str, backbone: str) -> Cost:
    return estimator(backbone).cost(name, settings(name))


def learner(name: str, spec: BackboneSpec) -> ComposedModel:
    """A real model with the very task that is estimated, ready to be trained."""
    model = ComposedModel(built(spec), FINGERPRINT)
    first = spec.null_index + 1
    names = tuple(f"class {i}" for i in range(CLASSES))
    config = kind(name).config(settings(name)).to_dict()
    meta = AdapterMeta("task", name, config, FINGERPRINT, spec.null_index, (first, first + CLASSES), names)
    task = model.start(meta, torch.Generator().manual_seed(0))
    for bank in model.banks(model.groups[task.group]).values():
        bank.requires_grad_(True)
    task.rows.requires_grad_(True)
    return model


def real_step(model: ComposedModel, tokens: int, masked: bool) -> Step:
    """The same step with numbers in it."""
    spec = model.spec
    x, t = tiny.inputs(BATCH, size=spec.latent_shape()[1])
    rows = torch.full((BATCH,), spec.null_index + 1)
    keep = torch.arange(tokens).repeat(BATCH, 1) if masked else None
    text = None if spec.text is None else torch.zeros(BATCH, spec.text.length, spec.text.width)
    target = model.backbone.patches(x)[:, :tokens] if masked else x
    saved = SavedTensors(model.parameters())
    with FlopCounterMode(display=False, custom_mapping=TWICE_ITS_FORWARD) as flops:
        with saved.watching():
            predicted = model.denoise(x, t, rows, model.plan(["task"] * BATCH), keep, text)
            predicted = without_variance(predicted, target, x.shape[1])
            loss = l_simple(predicted, target).sum()
        forward = flops.get_total_flops()
        loss.backward()
        total = flops.get_total_flops()
    return Step(tokens, forward / 2 / BATCH, total / 2 / BATCH, saved.total_bytes)


@every_kind_on_every_backbone
def test_a_step_without_weights_costs_what_a_real_one_does(name: str, backbone: str) -> None:
    found = cost(name, backbone)
    model = learner(name, SPECS[backbone])
    assert real_step(model, found.step.tokens, masked=False) == found.step
    if found.masked is not None:
        assert found.masked.tokens == 2
        assert real_step(model, 2, masked=True) == found.masked


@every_kind_on_every_backbone
def test_the_adapter_file_has_the_estimated_bytes(name: str, backbone: str) -> None:
    found = cost(name, backbone)
    adapter = learner(name, SPECS[backbone]).adapter("task")
    assert len(adapter_bytes(adapter)) == found.file_bytes
    assert adapter.parameters == found.parameters


@pytest.mark.parametrize("name", kinds())
def test_training_keeps_the_estimated_states(name: str) -> None:
    found = cost(name, "dit")
    model = ComposedModel(tiny.backbone(), FINGERPRINT)
    config = kind(name).config(settings(name)).to_dict()
    meta = tiny.meta("task", (4, 4 + CLASSES), kind=name, config=config, backbone=FINGERPRINT)
    images = torch.zeros(CLASSES, 1, 8, 8, dtype=torch.uint8)
    training = CoTraining(
        model, [TaskData(meta, images, torch.arange(CLASSES))], Recipe(steps=1, batch=BATCH, mask_ratio=0)
    )
    training.train_step()
    trained = list(training.trained().values())
    moments = [training.optimizer.state[tensor][m] for tensor in trained for m in ("exp_avg", "exp_avg_sq")]
    gradients = [tensor.grad for tensor in trained if tensor.grad is not None]
    kept = [*trained, *gradients, *moments, *training.learners[0].averages.values()]
    assert sum(tensor.nbytes for tensor in kept) == found.states_bytes


def test_dit_xl_2_costs_what_the_papers_count() -> None:
    estimator = Estimator(spec_for("dit-xl-2"), Setup(classes=200, batch=4, mask_ratio=0.5))
    full, affiner = estimator.cost("full", {}), estimator.cost("affiner", {})
    assert full.step.tokens == 256
    assert round(full.step.forward_macs / 1e9, 1) == 118.6
    assert round(full.step.macs / 1e9, 1) == 355.9
    assert round(affiner.step.macs / full.step.macs, 2) == 0.75
    assert affiner.masked is not None
    assert round(affiner.masked.macs / full.step.macs, 2) == 0.37
    assert affiner.masked.saved_bytes < 0.52 * affiner.step.saved_bytes


def test_attention_by_one_kernel_keeps_no_weights_of_every_token_for_every_other() -> None:
    few, many = (
        Estimator(tiny.spec(image_size=size), Setup(batch=1)).cost("affiner", {"rank": 1}).step
        for size in (32, 64)
    )
    assert many.tokens == 4 * few.tokens
    assert many.saved_bytes < 4 * few.saved_bytes


def test_nothing_is_computed_and_no_weight_is_made() -> None:
    estimator = Estimator(tiny.spec())
    estimator.cost("affiner", {})
    assert {tensor.device.type for tensor in estimator.model.state_dict().values()} == {"meta"}
    assert estimator.model.slots == {}


def test_the_same_question_twice_has_the_same_answer() -> None:
    estimator = Estimator(tiny.spec())
    first, second = (estimator.cost("lora", {}) for _ in range(2))
    assert first == second


def test_another_size_of_image_has_its_own_tokens() -> None:
    found = Estimator(tiny.spec(), Setup(batch=1, image_size=16)).cost("bitfit", {})
    assert found.step.tokens == 16
    with pytest.raises(ConfigInvalid, match="image_size"):
        Estimator(tiny.spec(), Setup(image_size=10))


def test_of_a_backbone_file_only_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_backbone(tiny.backbone(), path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[: 8 + length] + bytes(len(whole) - 8 - length))
    assert spec_for(str(path)) == tiny.spec()


@pytest.mark.parametrize("what", ["unet", "dit"])
def test_of_a_diffusers_folder_only_headers_are_read(what: str, tmp_path: Path) -> None:
    if what == "unet":
        UNet2DModel(**UNET, num_class_embeds=2).save_pretrained(tmp_path)
    else:
        model = DiTTransformer2DModel(2, 8, 4, 8, num_layers=2, sample_size=4, num_embeds_ada_norm=3)
        first, second = (block.norm1.emb for block in model.transformer_blocks)
        second.load_state_dict(first.state_dict())
        model.save_pretrained(tmp_path)
    known = import_backbone(tmp_path).spec
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    weights.write_bytes(whole[: 8 + length] + b"\xff" * (len(whole) - 8 - length))  # no number at all
    assert spec_for(str(tmp_path)) == known
    assert Estimator(known).count("bitfit", {})["bias"] > 0


@pytest.mark.parametrize("arch", named_architectures())
def test_every_well_known_architecture_can_be_built(arch: str) -> None:
    assert Estimator(spec_for(arch)).count("bitfit", {})["bias"] > 0


def test_what_is_no_backbone_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'dit-xl-2'"):
        spec_for("dit-xl2")
    with pytest.raises(BackboneFileInvalid, match="there is no such file"):
        spec_for("nowhere/backbone.safetensors")
    with pytest.raises(BackboneFileInvalid, match="neither a model_index"):
        spec_for(str(tmp_path))


@pytest.mark.parametrize(
    ("setup", "match"),
    [
        ({"classes": 0}, "classes"),
        ({"batch": 0}, "batch"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"image_size": -1}, "image_size"),
    ],
)
def test_a_set_up_that_cannot_be_is_refused(setup: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigInvalid, match=match):
        Setup(**setup)


def test_what_a_kind_or_a_backbone_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="no tokens to mask"):
        Estimator(unet_spec(), Setup(mask_ratio=0.5))
    estimator = Estimator(tiny.spec())
    with pytest.raises(UnknownName, match="Did you mean 'affiner'"):
        estimator.cost("afiner", {})
    with pytest.raises(ConfigInvalid, match="rank"):
        estimator.cost("affiner", {"rank": 0})
    with pytest.raises(ConfigInvalid, match="nothing to adapt"):
        estimator.cost("affiner", {"targets": ["down_blocks.*"]})
    with pytest.raises(ConfigInvalid, match="nothing to adapt"):
        Estimator(unet_spec()).cost("adaptformer-parallel", {})

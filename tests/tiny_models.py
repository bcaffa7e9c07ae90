"""Backbones and adapters small enough that a test takes milliseconds, with no weight left at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from affinery.adapters.files import Adapter, AdapterMeta
from affinery.backbones.contract import Backbone, BackboneSpec
from affinery.backbones.dit import DiT
from affinery.composed import ComposedModel

FINGERPRINT = "f" * 64
NULL = 3


def spec(**changes: Any) -> BackboneSpec:
    """Three classes, 8 × 8 grey pixels, four tokens."""
    values: dict[str, Any] = {
        "arch": "dit",
        "config": {"width": 16, "depth": 2, "heads": 2, "patch": 4},
        "class_names": ("coat", "bag", "boot"),
        "image_size": 8,
        "channels": 1,
        "prediction": "v_prediction",
        "schedule": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000},
        "defaults": {"sampler": {"steps": 5, "guidance": 2.0}},
    }
    return BackboneSpec(**values | changes)


def backbone(seed: int = 0, **changes: Any) -> Backbone:
    """A DiT with random weights everywhere, its gates included."""
    model = DiT.build(spec(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return model.freeze()


def meta(task: str = "digits", block: tuple[int, int] = (4, 6), rank: int = 2, **changes: Any) -> AdapterMeta:
    values: dict[str, Any] = {
        "task": task,
        "kind": "affiner",
        "config": {"rank": rank},
        "backbone": FINGERPRINT,
        "null_index": NULL,
        "block": block,
        "class_names": tuple(f"{task} {i}" for i in range(block[1] - block[0])),
    }
    return AdapterMeta(**values | changes)


def randomise(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every tensor replaced by random values of its shape."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}


def adapter(record: AdapterMeta, seed: int = 1, base: Backbone | None = None) -> Adapter:
    """A trained adapter, as far as its tensors can tell: none of them is zero."""
    model = ComposedModel(base or backbone(), record.backbone)
    model.start(record, torch.Generator().manual_seed(seed))
    return Adapter(record, randomise(dict(model.adapter(record.task).tensors), seed))


def composed(*adapters: Adapter, base: Backbone | None = None) -> ComposedModel:
    model = ComposedModel(base or backbone(), FINGERPRINT)
    for one in adapters:
        model.load(one)
    return model


def two_tasks() -> list[Adapter]:
    """Two tasks of different class counts and ranks."""
    return [adapter(meta("digits", (4, 6), 2), 1), adapter(meta("letters", (6, 9), 3), 2)]


def digests(module: nn.Module) -> dict[str, bytes]:
    """Every tensor's bytes, by name."""
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}


def inputs(count: int, seed: int = 0, size: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    """x: (B, C, H, W) and t: (B,)"""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, size, size, generator=generator)
    return x, torch.randint(1000, (count,), generator=generator)


def same_weights(one: Backbone, other: Backbone) -> bool:
    """Whether two backbones are equal to the bit."""
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())

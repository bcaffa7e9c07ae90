"""What a backbone is to the rest of Affinery: a frozen denoiser that states its own facts.

A backbone file is one safetensors file: the weights, and in its metadata a JSON `BackboneSpec`. Its
*fingerprint* is taken over the spec and every tensor's name, type, shape and bytes, so it does not depend
on how a container orders or pads them.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class BackboneSpec:
    """The facts of one backbone version that are not weights.

    arch: a file's name in `affinery/backbones/`; config: the arguments that build it.
    prediction: what the network's output means, in diffusers' words.
    schedule: the arguments of diffusers' `DDIMScheduler` that fix the noise schedule.
    class_names: the N classes it was pretrained on; the unconditional ("null") row has index N.
    defaults: sampling and training settings that were found to suit it (guidance, steps, recipe …).
    """

    arch: str
    config: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    prediction: str = "epsilon"
    schedule: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def null_index(self) -> int:
        """Row of the class table that means "no class"; a task's rows come after it (DiffScaler, eq. 1)."""
        return len(self.class_names)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> BackboneSpec:
        """Raises TypeError, ValueError or KeyError on anything that is not a spec."""
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("the spec is not a JSON object")
        raw["class_names"] = tuple(str(name) for name in raw["class_names"])
        spec = cls(**raw)
        if spec.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {spec.prediction!r} is none of {', '.join(PREDICTIONS)}")
        return spec


class Backbone(nn.Module):
    """A denoiser with a class table. Subclasses live one to a file in this folder and set `ARCH`."""

    spec: BackboneSpec

    @classmethod
    @abstractmethod
    def build(cls, spec: BackboneSpec) -> Backbone:
        """An untrained backbone of this spec, on the current default device."""

    @abstractmethod
    def adaptable(self) -> Mapping[str, nn.Module]:
        """The layers that adapters may change, by their name in `named_modules()`, in forward order."""

    @property
    @abstractmethod
    def class_table(self) -> Tensor:
        """(N + 1, D): the classes' embeddings, the null row last."""

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, classes: Tensor, keep: Tensor | None = None) -> Tensor:
        """The network's prediction.

        x: (B, C, H, W); t: (B,) time steps; classes: (B, D) embeddings of the labels;
        keep: (B, K) positions of the tokens to compute, the rest being dropped before the first block.
        → (B, C, H, W), or (B, K, P) patches where `keep` was given.
        """

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, T, P): the image as the tokens that `denoise` predicts when masked."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """How many tokens an image has."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x: (B, C, H, W); t, labels: (B,), label N meaning "no class" → (B, C, H, W)."""
        return self.denoise(x, t, self.class_table[labels])

    def freeze(self) -> Backbone:
        """Stops every parameter from training. → self"""
        self.requires_grad_(False)
        return self.eval()


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(spec: BackboneSpec, build: type[Backbone]) -> Backbone:
    """The backbone without its weights: shapes and names only, at no cost in memory."""
    with torch.device("meta"):
        return build.build(spec)

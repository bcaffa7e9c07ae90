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
from typing import Any, cast

import torch
from torch import Tensor, nn

from affinery.tensor_files import read_json

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SIDE_LIMIT, CHANNELS_LIMIT, STEPS_LIMIT = 8192, 256, 100_000
SCHEDULE_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "clip_sample": (True, False),
    "set_alpha_to_one": (True, False),
    "rescale_betas_zero_snr": (True, False),
}
SCHEDULE_RANGES = {
    "num_train_timesteps": (1, STEPS_LIMIT),
    "steps_offset": (0, 1),
    "beta_start": (1e-9, 0.999),
    "beta_end": (1e-9, 0.999),
    "clip_sample_range": (1e-3, 1e3),
}
SAMPLER_RANGES = {"steps": (1, STEPS_LIMIT), "guidance": (0, 1000)}


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
        raw = read_json(text)
        if not isinstance(raw, dict):
            raise ValueError("the spec is not a JSON object")
        names = raw["class_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names is not a list of names")
        spec = cls(**raw | {"class_names": tuple(names)})
        spec.check()
        return spec

    def check(self) -> None:
        """Raises ValueError where a value is of a wrong type or out of its range."""
        if not isinstance(self.arch, str):
            raise ValueError("arch is not a name")
        for name in ("config", "schedule", "defaults"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} is not a JSON object")
        _check_range("image_size", self.image_size, (1, SIDE_LIMIT), whole=True)
        _check_range("channels", self.channels, (1, CHANNELS_LIMIT), whole=True)
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r} is none of {', '.join(PREDICTIONS)}")
        for name, value in self.schedule.items():
            if name in SCHEDULE_RANGES:
                whole = isinstance(SCHEDULE_RANGES[name][0], int)
                _check_range(f"schedule.{name}", value, SCHEDULE_RANGES[name], whole)
            elif not any(
                type(value) is type(choice) and value == choice for choice in SCHEDULE_CHOICES.get(name, ())
            ):
                raise ValueError(f"schedule.{name} = {value!r} is not known here")
        sampler = self.defaults.get("sampler", {})
        if not isinstance(sampler, dict) or sampler.keys() - SAMPLER_RANGES.keys():
            raise ValueError("defaults.sampler may hold steps and guidance only")
        for name, value in sampler.items():
            _check_range(f"defaults.sampler.{name}", value, SAMPLER_RANGES[name], whole=name == "steps")


def _check_range(name: str, value: object, limits: tuple[float, float], whole: bool) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not limits[0] <= cast(float, value) <= limits[1]:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} = {value!r} is not a {kind} from {limits[0]:g} to {limits[1]:g}")


class Backbone(nn.Module):
    """A denoiser with a class table. Subclasses live one to a file in this folder, as its `BACKBONE`."""

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

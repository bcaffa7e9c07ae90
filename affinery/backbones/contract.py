"""What a backbone is to the rest of Affinery: a frozen denoiser that states its own facts.

A backbone file is one safetensors file: the weights, and in its metadata a JSON `BackboneSpec`. Its
*fingerprint* is taken over the spec and every tensor's name, type, shape and bytes, so it does not depend
on how a container orders or pads them.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from affinery.errors import ConfigInvalid
from affinery.limits import SIDE_LIMIT
from affinery.names import can_be_shown
from affinery.tensor_files import read_json

if TYPE_CHECKING:
    from affinery.backbones.text_encoder import TextEncoder

PREDICTIONS = ("epsilon", "v_prediction", "sample")
CHANNELS_LIMIT, STEPS_LIMIT = 256, 100_000
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

ROLES = {
    "stem": "the first layer: patch embedding, conv_in",
    "time": "the MLP of the time step, shared by all blocks",
    "modulation": "what turns the time step and the class into a block's shifts, scales and gates",
    "qkv": "queries, keys and values in one layer",
    "query": "queries of an attention",
    "key": "keys of an attention",
    "value": "values of an attention",
    "proj": "an attention's output projection",
    "fc1": "an MLP's first layer",
    "fc2": "an MLP's second layer",
    "conv": "a convolution in the middle of the network",
    "linear": "any other linear layer in the middle of the network",
    "norm": "a normalisation with weights of its own",
    "head": "the last layers, after the blocks",
    "head-modulation": "what turns the time step and the class into shifts and scales of the last layer",
    "attention": "a whole attention branch, whose output is added to the stream",
    "mlp": "a whole feed-forward branch, whose output is added to the stream",
    "block": "a whole transformer block, tokens in and out",
    "residual": "a whole convolutional block",
}
LAYER_ROLES = frozenset(ROLES) - {"attention", "mlp", "block", "residual"}


@dataclass(frozen=True)
class Site:
    """A module that adapters may change: one layer, or a whole branch or block of the network.

    role: a key of `ROLES`. block: the block or stage that it lies in, from 0 in forward order.
    """

    module: nn.Module
    role: str
    block: int | None = None


@dataclass(frozen=True)
class Latent:
    """The space that a latent backbone denoises in: z = (encode(image) − shift) · scaling.

    channels: of a latent; factor: pixels a latent pixel, along each side. vae: the config of diffusers'
    `AutoencoderKL` whose weights the backbone file holds under `vae.`; None where it holds none.
    """

    channels: int
    factor: int
    scaling: float = 1.0
    shift: float = 0.0
    vae: dict[str, Any] | None = None


@dataclass(frozen=True)
class Text:
    """What a text-conditional backbone is told: (B, length, width) embeddings of captions.

    encoder: the settings of the `TextEncoder` whose weights and vocabulary the file holds under `text.`; None
    where it holds none.
    """

    length: int
    width: int
    encoder: dict[str, Any] | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """The facts of one backbone version that are not weights.

    arch: a file's name in `affinery/backbones/`; config: the arguments that build it.
    class_names: the N classes it was pretrained on; the unconditional ("null") row has index N. A backbone
    without classes has the null row alone.
    image_size, channels: of the images that it draws, in pixels; what it denoises are those images, or their
    latents where `latent` is given.
    prediction: what the network's output means, in diffusers' words.
    schedule: the arguments of diffusers' `DDIMScheduler` that fix the noise schedule.
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
    latent: Latent | None = None
    text: Text | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def null_index(self) -> int:
        """Row of the class table that means "no class"; a task's rows come after it (DiffScaler, eq. 1)."""
        return len(self.class_names)

    def latent_shape(self, image_size: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of what is denoised, for images of the backbone's size or another.

        Raises ConfigInvalid where images of that size have no latents.
        """
        size = image_size or self.image_size
        if self.latent is None:
            return self.channels, size, size
        if size % self.latent.factor:
            raise ConfigInvalid("image_size", f"{size} is no multiple of the latents' {self.latent.factor}.")
        return self.latent.channels, size // self.latent.factor, size // self.latent.factor

    def to_json(self) -> str:
        """What does not apply to a backbone (its latent space, its text) is left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> BackboneSpec:
        """Raises TypeError, ValueError or KeyError on anything that is not a spec."""
        raw = read_json(text)
        if not isinstance(raw, dict):
            raise ValueError("the spec is not a JSON object")
        names = raw["class_names"]
        if not isinstance(names, list) or not all(isinstance(n, str) and can_be_shown(n) for n in names):
            raise ValueError("class_names is not a list of names that can be shown")
        parts: dict[str, Any] = {"class_names": tuple(names)}
        if "latent" in raw:
            parts["latent"] = Latent(**raw["latent"])
        if "text" in raw:
            parts["text"] = Text(**raw["text"])
        spec = cls(**raw | parts)
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
        self._check_spaces()

    def _check_spaces(self) -> None:
        if self.latent is not None:
            _check_range("latent.channels", self.latent.channels, (1, CHANNELS_LIMIT), whole=True)
            _check_range("latent.factor", self.latent.factor, (1, 256), whole=True)
            _check_range("latent.scaling", self.latent.scaling, (1e-6, 1e6), whole=False)
            _check_range("latent.shift", self.latent.shift, (-1e6, 1e6), whole=False)
            if self.image_size % self.latent.factor:
                raise ValueError(f"image_size {self.image_size} is no multiple of {self.latent.factor}")
        if self.text is not None:
            _check_range("text.length", self.text.length, (1, 65_536), whole=True)
            _check_range("text.width", self.text.width, (1, 65_536), whole=True)
        for config in (self.latent and self.latent.vae, self.text and self.text.encoder):
            if config is not None and not isinstance(config, dict):
                raise ValueError("the config of its VAE or its text encoder is not a JSON object")


def _check_range(name: str, value: object, limits: tuple[float, float], whole: bool) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not limits[0] <= cast(float, value) <= limits[1]:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} = {value!r} is not a {kind} from {limits[0]:g} to {limits[1]:g}")


class Backbone(nn.Module):
    """A denoiser with a class table. Subclasses live one to a file in this folder, as its `BACKBONE`.

    Shape legend: B samples; (C, H, W) what is denoised, `spec.latent_shape()`; D width of the class table;
    T tokens, K kept tokens, P values of a patch; L, E length and width of a text embedding.
    """

    spec: BackboneSpec
    vae: Any  # diffusers' AutoencoderKL, or None
    text: TextEncoder | None

    def attach(self, spec: BackboneSpec) -> None:
        """Takes the spec; builds the VAE and the text encoder that it names. Every constructor calls it."""
        self.spec = spec
        self.vae = self.text = None
        if spec.latent is not None and spec.latent.vae is not None:
            from affinery.backbones.latent_space import build_vae

            self.vae = build_vae(spec.latent)
        if spec.text is not None and spec.text.encoder is not None:
            from affinery.backbones.text_encoder import TextEncoder

            self.text = TextEncoder(spec.text)

    @classmethod
    @abstractmethod
    def build(cls, spec: BackboneSpec) -> Backbone:
        """An untrained backbone of this spec, on the current default device."""

    @abstractmethod
    def sites(self) -> Mapping[str, Site]:
        """What adapters may change, by name in `named_modules()`, in forward order.

        All layers with weights are there except the class table, and the branches and blocks around them.
        """

    @property
    @abstractmethod
    def class_table(self) -> Tensor:
        """(N + 1, D): the classes' embeddings, the null row last."""

    @abstractmethod
    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor,
        keep: Tensor | None = None,
        text: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Tensor:
        """The network's prediction.

        x: (B, C, H, W), of any size that the architecture can take; t: (B,) time steps;
        classes: (B, D) embeddings of the labels;
        keep: (B, K) positions of the tokens to compute, the rest being dropped before the first block;
        text: (B, L, E) embeddings of captions, for text-conditional backbones;
        hint: (B, *hint_shape) what a spatial condition adds to the output of the first layer.
        → (B, C, H, W), or (B, K, P) patches where `keep` was given. A learned variance doubles C.
        """

    @abstractmethod
    def hint_shape(self, image_size: int | None = None) -> tuple[int, int, int]:
        """(C', H', W') of a spatial condition, which is added after the first layer.

        Raises ConfigInvalid where the architecture cannot take images of that size.
        """

    @property
    def tokens(self) -> int:
        """How many tokens an image has; 0 where there are none to be masked."""
        return 0

    @property
    def guided_channels(self) -> int:
        """Classifier-free guidance changes the first so many channels of a prediction."""
        return self.spec.latent_shape()[0]

    def patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, T, P): the image as the tokens that `denoise` predicts when masked."""
        raise ConfigInvalid("mask_ratio", f"{self.spec.arch} has no tokens to mask; train it with 0.")

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, text: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); t, labels: (B,), label N meaning "no class" → (B, C, H, W)."""
        return self.denoise(x, t, self.class_table[labels], text=text)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) in [−1, 1] → what is denoised: the images, or their latents.

        A latent is the mode of the VAE's posterior, so the same image always has the same one.
        """
        latent = self.spec.latent
        if latent is None:
            return images
        if self.vae is None:
            raise ConfigInvalid("backbone", "it denoises latents, but its file holds no VAE to make them.")
        z: Tensor = self.vae.encode(images).latent_dist.mode()
        return (z - latent.shift) * latent.scaling

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`. → (B, channels, H, W) in [−1, 1]"""
        latent = self.spec.latent
        if latent is None:
            return x.clamp(-1, 1)
        if self.vae is None:
            raise ConfigInvalid("backbone", "it draws latents, but its file holds no VAE to decode them.")
        images: Tensor = self.vae.decode(x / latent.scaling + latent.shift).sample
        return images.clamp(-1, 1)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions, "" meaning none → (B, L, E)."""
        if self.text is None:
            raise ConfigInvalid("captions", f"this backbone ({self.spec.arch}) has no text encoder.")
        embeddings: Tensor = self.text(captions)
        return embeddings

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

"""What both U-Nets share: diffusers' stages, run one after the other so that classes and a hint can enter.

Shape legend: B samples, (C, H, W) what is denoised, D width of the time embedding, C₀ channels of the first
stage, (B, L, E) caption embeddings.

Modules and parameters have the names that diffusers gives them, so the files of its models load as they are.
Only the class table is our own: an embedding whose rows are added to the time step's, the null row last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, ClassVar

from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from affinery.backbones.contract import Backbone, BackboneSpec, Site
from affinery.backbones.network_config import arguments, check_config, only
from affinery.errors import ConfigInvalid

LAYER_ENDINGS = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj",
    "time_emb_proj": "modulation",
    "net.0.proj": "fc1",
    "net.2": "fc2",
}


class UNet(Backbone):
    """A U-Net whose stages are those of a diffusers model; the spec's config holds that model's arguments.

    NETWORK: diffusers' class; SETTINGS: its arguments, except those about classes; SUPPORTED: the values of
    settings that can have few; ANY_SIZE: whether it takes sides that are no multiple of 2 ** (stages − 1).
    """

    NETWORK: ClassVar[Any]
    SETTINGS: ClassVar[tuple[str, ...]]
    SUPPORTED: ClassVar[Mapping[str, tuple[object, ...]]]
    ANY_SIZE: ClassVar[bool]

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.attach(spec)
        check_config("config", spec.config, arguments(self.NETWORK, self.SETTINGS))
        only("config", spec.config, self.SUPPORTED)
        network = self.NETWORK(**spec.config)
        self.centre = bool(network.config.center_input_sample)
        self.width = int(network.config.block_out_channels[0])
        self.coarsest = 2 ** (len(network.config.block_out_channels) - 1)
        channels = spec.latent_shape()[0]
        if network.config.in_channels != channels or network.config.out_channels not in (
            channels,
            2 * channels,
        ):
            raise ConfigInvalid(
                "config",
                f"the network turns {network.config.in_channels} channels into "
                f"{network.config.out_channels}; what it denoises has {channels}.",
            )
        self._check_side(spec.latent_shape()[1])
        self.conv_in = network.conv_in
        self.time_proj = network.time_proj
        self.time_embedding = network.time_embedding
        self.class_embedding = nn.Embedding(spec.num_classes + 1, self.time_embedding.linear_2.out_features)
        if not spec.class_names:
            nn.init.zeros_(self.class_embedding.weight)  # the network as it is without classes
        self.down_blocks = network.down_blocks
        self.mid_block = network.mid_block
        self.up_blocks = network.up_blocks
        self.conv_norm_out = network.conv_norm_out
        self.conv_act = network.conv_act
        self.conv_out = network.conv_out

    @classmethod
    def build(cls, spec: BackboneSpec) -> UNet:
        return cls(spec)

    def _check_side(self, side: int) -> None:
        if side % self.coarsest and not self.ANY_SIZE:
            raise ConfigInvalid("image_size", f"the side {side} is no multiple of {self.coarsest}.")

    def sites(self) -> Mapping[str, Site]:
        found = {"conv_in": Site(self.conv_in, "stem")}
        for name in ("linear_1", "linear_2"):
            found[f"time_embedding.{name}"] = Site(getattr(self.time_embedding, name), "time")
        for i, (path, stage) in enumerate(self._stages()):
            found.update(_sites(path, stage, i))
        for name in ("conv_norm_out", "conv_out"):
            if getattr(self, name) is not None:
                found[name] = Site(getattr(self, name), "head")
        return found

    def _stages(self) -> Iterator[tuple[str, nn.Module]]:
        """In forward order: down, middle, up."""
        yield from ((f"down_blocks.{i}", stage) for i, stage in enumerate(self.down_blocks))
        if self.mid_block is not None:
            yield "mid_block", self.mid_block
        yield from ((f"up_blocks.{i}", stage) for i, stage in enumerate(self.up_blocks))

    @property
    def class_table(self) -> Tensor:
        return self.class_embedding.weight

    def hint_shape(self, image_size: int | None = None) -> tuple[int, int, int]:
        _, height, width = self.spec.latent_shape(image_size)
        self._check_side(height)
        return self.width, height, width

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor,
        keep: Tensor | None = None,
        text: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Tensor:
        if keep is not None:
            raise ConfigInvalid("mask_ratio", f"{self.spec.arch} has no tokens to mask; train it with 0.")
        for side in x.shape[-2:]:
            self._check_side(side)
        hidden = self.conv_in(2 * x - 1 if self.centre else x)  # (B, C₀, H, W)
        if hint is not None:
            hidden = hidden + hint
        condition = self.time_embedding(self.time_proj(t).to(classes.dtype)) + classes  # (B, D)
        skips: list[Tensor] = [hidden]
        for stage in self.down_blocks:
            hidden, outputs = stage(hidden, temb=condition, **_captions(stage, text))
            skips.extend(outputs)
        if self.mid_block is not None:
            hidden = self.mid_block(hidden, temb=condition, **_captions(self.mid_block, text))
        uneven = any(side % self.coarsest for side in x.shape[-2:])
        for stage in self.up_blocks:
            count = len(stage.resnets)
            taken, skips = tuple(skips[-count:]), skips[:-count]
            size = {"upsample_size": skips[-1].shape[2:]} if uneven and skips else {}
            hidden = stage(hidden, taken, temb=condition, **size, **_captions(stage, text))
        if self.conv_norm_out is not None:
            hidden = self.conv_act(self.conv_norm_out(hidden))
        out: Tensor = self.conv_out(hidden)
        return out


def _captions(stage: nn.Module, text: Tensor | None) -> dict[str, Tensor | None]:
    return {"encoder_hidden_states": text} if getattr(stage, "has_cross_attention", False) else {}


def _sites(path: str, module: nn.Module, stage: int) -> Iterator[tuple[str, Site]]:
    """A module's own site and those of the modules in it, in the order in which they are asked."""
    role = _role(path, module)
    if role is not None:
        yield path, Site(module, role, stage)
    for name, child in _children(module):
        yield from _sites(f"{path}.{name}", child, stage)


def _role(path: str, module: nn.Module) -> str | None:
    """What a module of a stage is, or None where it is only a container or has no weights.

    A self-attention of diffusers' older blocks adds the stream to its output itself, so it is no branch but
    a block of its own. None of these modules is ever asked for anything but its output, so each may be
    replaced by a wrapper.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        for ending, role in LAYER_ENDINGS.items():
            if path.endswith(f".{ending}"):
                return role
        return "linear" if isinstance(module, nn.Linear) else "conv"
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        return "norm"
    if isinstance(module, Attention):
        return "residual" if module.residual_connection else "attention"
    if isinstance(module, FeedForward):
        return "mlp"
    if isinstance(module, ResnetBlock2D):
        return "residual"
    return "block" if isinstance(module, BasicTransformerBlock) else None


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """By path. A stage's residual blocks and attentions take turns, though it lists one kind first."""
    parts = dict(module.named_children())
    turns = [
        [(f"{kind}.{name}", child) for name, child in parts.pop(kind).named_children()]
        for kind in ("resnets", "attentions")
        if kind in parts
    ]
    for pair in zip_longest(*turns):
        yield from (one for one in pair if one is not None)
    yield from parts.items()

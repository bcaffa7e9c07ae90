"""The diffusion transformer (DiT, Peebles & Xie 2022) on timm's layers: adaLN-Zero blocks over patch tokens.

Shape legend: B samples, C channels, H×W pixels, p patch side, T = HW/p² tokens, K kept tokens, D width.

Names of parameters are those of the official checkpoints (`blocks.i.attn.qkv`, `y_embedder.embedding_table`
…), so that such a file loads as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

from affinery.backbones.contract import Backbone, BackboneSpec
from affinery.errors import ConfigInvalid

LIMITS = {"width": 65_536, "depth": 256, "heads": 1024, "patch": 1024}


@dataclass(frozen=True)
class DiTConfig:
    """mlp_ratio: the MLP's hidden width over the model's; learn_sigma: it predicts a variance too."""

    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float = 4.0
    learn_sigma: bool = False

    def __post_init__(self) -> None:
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigInvalid(name, f"{value!r} is not a whole number from 1 to {most}.")
        if type(self.mlp_ratio) not in (int, float) or not 0.01 <= self.mlp_ratio <= 64:
            raise ConfigInvalid("mlp_ratio", f"{self.mlp_ratio!r} is not a number from 0.01 to 64.")
        if type(self.learn_sigma) is not bool:
            raise ConfigInvalid("learn_sigma", f"{self.learn_sigma!r} is neither true nor false.")
        if self.width % 4 or self.width % self.heads:
            raise ConfigInvalid("width", f"{self.width} must be a multiple of 4 and of heads = {self.heads}.")


def sinusoid(positions: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """positions: (B,) → (B, dim): cosines, then sines, of geometrically spaced frequencies."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=positions.device) / half
    )
    angles = positions[:, None].float() * frequencies[None]  # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(dim: int, side: int) -> Tensor:
    """→ (1, side², dim): fixed 2-D sine-cosine positions, half the width for columns, half for rows."""
    axis = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    omega = 1.0 / 10_000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4.0))

    def encode(coordinate: Tensor) -> Tensor:
        angles = coordinate.reshape(-1)[:, None] * omega[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    return torch.cat([encode(columns), encode(rows)], dim=1).float()[None]


def linear_at(module: nn.Module, path: str) -> nn.Linear:
    """The linear layer at a path below a module."""
    found = module.get_submodule(path)
    assert isinstance(found, nn.Linear)
    return found


class TimestepEmbedder(nn.Module):
    """t → (B, D), through sinusoids of 256 frequencies and an MLP."""

    FREQUENCIES = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        hidden: Tensor = self.mlp(sinusoid(t, self.FREQUENCIES).to(next(self.mlp.parameters()).dtype))
        return hidden


class LabelEmbedder(nn.Module):
    """The class table. The official checkpoints keep the unconditional row last, at index N."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: (B, T, D); shift, scale: (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def gelu_tanh() -> nn.Module:
    return nn.GELU(approximate="tanh")


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the conditioning (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden_features=int(width * mlp_ratio), act_layer=gelu_tanh)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, T, D) tokens; c: (B, D) conditioning → (B, T, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        out: Tensor = x + gate_m[:, None] * self.mlp(modulate(self.norm2(x), shift_m, scale_m))
        return out


class FinalLayer(nn.Module):
    """Tokens back to patches."""

    def __init__(self, width: int, patch_values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, T, D); c: (B, D) → (B, T, p²·C)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        patches: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return patches


class DiT(Backbone):
    """A class-conditional diffusion transformer. The spec's config holds what `DiTConfig` names."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        config = DiTConfig(**spec.config)
        width, patch = config.width, config.patch
        if spec.image_size % patch:
            raise ConfigInvalid(
                "image_size", f"{spec.image_size} is not a multiple of the patch side {patch}."
            )
        self.spec = spec
        self.patch = patch
        self.side = spec.image_size // patch
        self.out_channels = spec.channels * (2 if config.learn_sigma else 1)
        self.x_embedder = PatchEmbed(spec.image_size, patch, spec.channels, width, bias=True)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(spec.num_classes, width)
        self.pos_embed = nn.Parameter(position_table(width, self.side), requires_grad=False)
        self.blocks = nn.ModuleList(
            DiTBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, patch * patch * self.out_channels)

    @classmethod
    def build(cls, spec: BackboneSpec) -> DiT:
        return cls(spec)

    def initialise(self, generator: torch.Generator) -> DiT:
        """Weights for pretraining from scratch: Xavier linears, N(0, 0.02) embeddings, zero gates. → self"""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1), generator=generator)
        nn.init.zeros_(projection.bias)
        embeddings = [linear_at(self.t_embedder, f"mlp.{i}").weight for i in (0, 2)]
        for weight in (self.y_embedder.embedding_table.weight, *embeddings):
            nn.init.normal_(weight, std=0.02, generator=generator)
        gates = [linear_at(part, "adaLN_modulation.1") for part in (*self.blocks, self.final_layer)]
        for linear in (*gates, self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        return self

    def adaptable(self) -> Mapping[str, nn.Module]:
        """qkv (fused), proj, fc1, fc2 and adaLN of every block; no embedding, and not the final layer."""
        parts = ("adaLN_modulation.1", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        return {
            f"blocks.{i}.{part}": block.get_submodule(part)
            for i, block in enumerate(self.blocks)
            for part in parts
        }

    @property
    def class_table(self) -> Tensor:
        return self.y_embedder.embedding_table.weight

    @property
    def tokens(self) -> int:
        return self.side * self.side

    def denoise(self, x: Tensor, t: Tensor, classes: Tensor, keep: Tensor | None = None) -> Tensor:
        tokens = self.x_embedder(x) + self.pos_embed  # (B, T, D)
        if keep is not None:
            tokens = tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[-1]))  # (B, K, D)
        condition = self.t_embedder(t) + classes  # (B, D)
        for block in self.blocks:
            tokens = block(tokens, condition)
        patches: Tensor = self.final_layer(tokens, condition)  # (B, T or K, p²·C)
        return patches if keep is not None else self.unpatch(patches)

    def patches(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.shape
        side, p = self.side, self.patch
        grid = x.reshape(batch, channels, side, p, side, p)
        return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, side * side, p * p * channels)

    def unpatch(self, patches: Tensor) -> Tensor:
        """(B, T, p²·C) → (B, C, H, W): the inverse of `patches`."""
        batch = patches.shape[0]
        side, p, channels = self.side, self.patch, self.out_channels
        grid = patches.reshape(batch, side, side, p, p, channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * p, side * p)


BACKBONE = DiT

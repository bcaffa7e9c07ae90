"""The diffusion transformer (DiT, Peebles & Xie 2022) on timm's layers: adaLN-Zero blocks over patch tokens.

Shape legend: B samples, C channels, H×W pixels, p patch side, T = HW/p² tokens, K kept tokens, D width.

Names of parameters are those of the official checkpoints (`blocks.i.attn.qkv`, `y_embedder.embedding_table`
…), so that such a file loads as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

from affinery.backbones.contract import BackboneSpec, Site
from affinery.backbones.patch_transformer import PatchTransformer, position_table, sinusoid
from affinery.recompute import remember

BLOCK_SITES = {
    "": "block",
    ".adaLN_modulation.1": "modulation",
    ".attn": "attention",
    ".attn.qkv": "qkv",
    ".attn.proj": "proj",
    ".mlp": "mlp",
    ".mlp.fc1": "fc1",
    ".mlp.fc2": "fc2",
}
HEAD_SITES = {"adaLN_modulation.1": "head-modulation", "linear": "head"}


def linear_at(module: nn.Module, path: str) -> nn.Linear:
    """The linear layer at a path below a module."""
    found = module.get_submodule(path)
    assert isinstance(found, nn.Linear)
    return found


class TimestepEmbedder(nn.Module):
    """t → (B, D), through sinusoids of 256 frequencies and an MLP."""

    FREQUENCIES = 256

    def __init__(self, width: int, frequency_shift: int) -> None:
        super().__init__()
        self.frequency_shift = frequency_shift
        self.mlp = nn.Sequential(nn.Linear(self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = sinusoid(t, self.FREQUENCIES, self.frequency_shift)
        hidden: Tensor = self.mlp(frequencies.to(next(self.mlp.parameters()).dtype))
        return hidden


class LabelEmbedder(nn.Module):
    """The class table. The official checkpoints keep the unconditional row last, at index N."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: (B, T, D); shift, scale: (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def modulated(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The modulated norm of x, in the number type that the layer after it computes in."""

    def again(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return for_layers(modulate(norm(x), shift, scale))

    normed = remember(norm(x), norm, x)
    return remember(for_layers(modulate(normed, shift, scale)), again, x, shift, scale)


def for_layers(x: Tensor) -> Tensor:
    """What autocast would make of a linear layer's input, made once for all who keep it."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


class Gelu(nn.GELU):
    """GELU with the approximation of DiT. Its result follows from its input, which is kept anyway."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return remember(super().forward(x), super().forward, x)


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the conditioning (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, mlp_norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=mlp_norm_eps)
        self.mlp = Mlp(width, hidden_features=int(width * mlp_ratio), act_layer=Gelu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, T, D) tokens; c: (B, D) conditioning → (B, T, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulated(self.norm1, x, shift_a, scale_a))
        out: Tensor = x + gate_m[:, None] * self.mlp(modulated(self.norm2, x, shift_m, scale_m))
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


class DiT(PatchTransformer):
    """A class-conditional diffusion transformer. The spec's config holds what `DiTConfig` names."""

    arch = "dit"
    usual_profile = "official"

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        config, profile = self.config, self.profile
        width, patch = config.width, config.patch
        self.x_embedder = PatchEmbed(
            self.side * patch, patch, self.in_channels, width, bias=True, strict_img_size=False
        )
        self.t_embedder = TimestepEmbedder(width, profile.frequency_shift)
        self.y_embedder = LabelEmbedder(spec.num_classes, width)
        self.pos_embed = nn.Parameter(position_table(width, self.side), requires_grad=False)
        self.blocks = nn.ModuleList(
            DiTBlock(width, config.heads, config.mlp_ratio, profile.mlp_norm_eps) for _ in range(config.depth)
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

    def sites(self) -> Mapping[str, Site]:
        found = {"x_embedder.proj": Site(self.x_embedder.proj, "stem")}
        for i in (0, 2):
            found[f"t_embedder.mlp.{i}"] = Site(self.t_embedder.mlp[i], "time")
        for i, block in enumerate(self.blocks):
            for part, role in BLOCK_SITES.items():
                found[f"blocks.{i}{part}"] = Site(block.get_submodule(part.removeprefix(".")), role, i)
        for part, role in HEAD_SITES.items():
            found[f"final_layer.{part}"] = Site(self.final_layer.get_submodule(part), role)
        return found

    @property
    def class_table(self) -> Tensor:
        return self.y_embedder.embedding_table.weight

    @property
    def positions(self) -> Tensor:
        return self.pos_embed

    def stem(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.x_embedder(x)
        return tokens

    def condition(self, t: Tensor, classes: Tensor) -> Tensor:
        embedded: Tensor = self.t_embedder(t)
        return embedded + classes

    def trunk(self, tokens: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, condition)
        return tokens

    def head(self, tokens: Tensor, condition: Tensor) -> Tensor:
        patches: Tensor = self.final_layer(tokens, condition)
        return patches


BACKBONE = DiT

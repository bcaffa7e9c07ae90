"""diffusers' DiT (`DiTTransformer2DModel`) as a backbone: its blocks and layers, one class table.

diffusers keeps a class table and a time-step MLP in every block, 28 copies in DiT-XL/2, which are equal in
every checkpoint that was not trained block by block. Here they are one, under `emb.`; the blocks are handed
the finished conditioning. Names of the other parameters are diffusers' own.

Shape legend: B samples, T tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings
from torch import Tensor, nn
from torch.nn.functional import silu

from affinery.backbones.contract import BackboneSpec, Site
from affinery.backbones.dit_spec import PROFILES, Facts, spec_of
from affinery.backbones.foreign_tensors import adopt, layout, null_last, with_rows
from affinery.backbones.patch_transformer import PatchTransformer, position_table, sinusoid
from affinery.errors import BackboneFileInvalid, ConfigInvalid

BLOCK_SITES = {
    "": "block",
    ".norm1.linear": "modulation",
    ".attn1": "attention",
    ".attn1.to_q": "query",
    ".attn1.to_k": "key",
    ".attn1.to_v": "value",
    ".attn1.to_out.0": "proj",
    ".ff": "mlp",
    ".ff.net.0.proj": "fc1",
    ".ff.net.2": "fc2",
}
HEAD_SITES = {"proj_out_1": "head-modulation", "proj_out_2": "head"}
FREQUENCIES = 256

# What a diffusers config must say, if it says it, for its transformer to be a DiT; diffusers' own defaults.
FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "upcast_attention": False,
}
DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
NUMBER_LIMIT = 65_536
TIED = (
    "timestep_embedder.linear_1.weight",
    "timestep_embedder.linear_1.bias",
    "timestep_embedder.linear_2.weight",
    "timestep_embedder.linear_2.bias",
    "class_embedder.embedding_table.weight",
)
TABLE, POSITIONS = "emb.class_embedder.embedding_table.weight", "pos_embed.pos_embed"


class Conditioned(nn.Module):
    """Stands where a block embeds time step and class, and hands on what was embedded once for all blocks."""

    def forward(self, _timestep: Tensor | None, condition: Tensor, **_settings: object) -> Tensor:
        """condition: (B, D), where diffusers hands the class labels → (B, D)."""
        return condition


class DiffusersDiT(PatchTransformer):
    """`DiTTransformer2DModel` with one class table. The spec's config holds what `DiTConfig` names, its
    profile being "diffusers" where it names none.
    """

    arch = "dit_diffusers"
    usual_profile = "diffusers"

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        config = self.config
        width = config.width
        if config.mlp_ratio != 4:
            raise ConfigInvalid("mlp_ratio", f"{config.mlp_ratio} is not 4, the only one that diffusers has.")
        model = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=width // config.heads,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            num_layers=config.depth,
            sample_size=self.side * config.patch,
            patch_size=config.patch,
            num_embeds_ada_norm=1,  # of the tables that are taken out again below
            norm_eps=self.profile.mlp_norm_eps,
        )
        for block in model.transformer_blocks:
            block.norm1.emb = Conditioned()
        self.emb = CombinedTimestepLabelEmbeddings(spec.num_classes, width)
        self.pos_embed = model.pos_embed
        del self.pos_embed.pos_embed  # recomputed at every load; a backbone's positions are part of its file
        self.pos_embed.pos_embed = nn.Parameter(position_table(width, self.side), requires_grad=False)
        self.transformer_blocks = model.transformer_blocks
        self.norm_out, self.proj_out_1, self.proj_out_2 = model.norm_out, model.proj_out_1, model.proj_out_2

    @classmethod
    def build(cls, spec: BackboneSpec) -> DiffusersDiT:
        return cls(spec)

    def sites(self) -> Mapping[str, Site]:
        found = {"pos_embed.proj": Site(self.pos_embed.proj, "stem")}
        for part in ("linear_1", "linear_2"):
            name = f"emb.timestep_embedder.{part}"
            found[name] = Site(self.get_submodule(name), "time")
        for i, block in enumerate(self.transformer_blocks):
            for part, role in BLOCK_SITES.items():
                module = block.get_submodule(part.removeprefix("."))
                found[f"transformer_blocks.{i}{part}"] = Site(module, role, i)
        for part, role in HEAD_SITES.items():
            found[part] = Site(self.get_submodule(part), role)
        return found

    @property
    def class_table(self) -> Tensor:
        table: Tensor = self.emb.class_embedder.embedding_table.weight
        return table

    @property
    def positions(self) -> Tensor:
        table: Tensor = self.pos_embed.pos_embed
        return table

    def stem(self, x: Tensor) -> Tensor:
        patches: Tensor = self.pos_embed.proj(x)  # (B, D, R, L)
        return patches.flatten(2).transpose(1, 2)

    def condition(self, t: Tensor, classes: Tensor) -> Tensor:
        frequencies = sinusoid(t, FREQUENCIES, self.profile.frequency_shift)
        embedded: Tensor = self.emb.timestep_embedder(frequencies.to(self.class_table.dtype))
        return embedded + classes

    def trunk(self, tokens: Tensor, condition: Tensor) -> Tensor:
        for block in self.transformer_blocks:
            tokens = block(tokens, class_labels=condition)
        return tokens

    def head(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.proj_out_1(silu(condition)).chunk(2, dim=1)
        patches: Tensor = self.proj_out_2(self.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None])
        return patches


BACKBONE = DiffusersDiT


def from_diffusers(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    profile: str = "diffusers",
    null_index: int | None = None,
    source: str = "the diffusers transformer",
    **facts: Unpack[Facts],
) -> DiffusersDiT:
    """The frozen backbone of a `DiTTransformer2DModel`, or of the `Transformer2DModel` that it once was.

    config, state: its config.json and its state dict. profile: "diffusers" predicts what diffusers does, also
    from weights that were trained as "official", as those of facebook/DiT-XL-2-256 were; then "official"
    predicts what they were trained to. null_index: the row that means no class, where config does not say and
    it is not the last. source: where they came from, for errors.

    Raises BackboneFileInvalid, or ConfigInvalid for a setting that cannot be.
    """
    values = _checked_config(config, profile, source)
    classes, side = values["num_embeds_ada_norm"], values["sample_size"]
    learn_sigma = config.get("out_channels") == 2 * values["in_channels"]
    settings: dict[str, Any] = {
        "width": values["num_attention_heads"] * values["attention_head_dim"],
        "depth": values["num_layers"],
        "heads": values["num_attention_heads"],
        "patch": values["patch_size"],
    }
    settings |= {"learn_sigma": True} if learn_sigma else {}
    settings |= {"profile": profile} if profile != DiffusersDiT.usual_profile else {}
    spec = spec_of(DiffusersDiT.arch, settings, classes, side, values["in_channels"], **facts)
    tensors = _untied(state, values["num_layers"], source)
    null_index = config.get("_null_index", classes) if null_index is None else null_index
    if TABLE in tensors and null_index != classes:
        tensors[TABLE] = null_last(tensors[TABLE], null_index, source)
    positions = partial(position_table, settings["width"], side // settings["patch"])
    return adopt(DiffusersDiT, spec, tensors, source, {POSITIONS: positions})


def _checked_config(config: Mapping[str, Any], profile: str, source: str) -> dict[str, int]:
    """→ its numbers, diffusers' own where it names none."""
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise BackboneFileInvalid(
                source, f"its config says {name} = {config[name]!r}; of a DiT it must be {value!r}."
            )
    values = {name: config.get(name, value) for name, value in DEFAULTS.items()}
    for name, value in values.items():
        if type(value) is not int or not 1 <= value <= NUMBER_LIMIT:
            raise BackboneFileInvalid(
                source, f"its config says {name} = {value!r}, no whole number from 1 to {NUMBER_LIMIT}."
            )
    channels = values["in_channels"]
    if config.get("out_channels") not in (None, channels, 2 * channels):
        raise BackboneFileInvalid(
            source,
            f"it has out_channels = {config['out_channels']!r}; of {channels} channels or twice as many.",
        )
    eps = config.get("norm_eps", PROFILES["diffusers"].mlp_norm_eps)
    if profile == "diffusers" and eps != PROFILES["diffusers"].mlp_norm_eps:
        raise BackboneFileInvalid(
            source,
            f"its norm_eps is {eps!r}, which no profile of these has: "
            + ", ".join(f"{name} {known.mlp_norm_eps:g}" for name, known in PROFILES.items())
            + ". Name the profile that it was trained under.",
        )
    return values


def _untied(state: Mapping[str, Tensor], depth: int, source: str) -> dict[str, Tensor]:
    """A transformer's tensors with one time-step MLP and one class table in place of a copy a block."""
    tensors = dict(state)
    for part in TIED:
        copies = [tensors.pop(f"transformer_blocks.{i}.norm1.emb.{part}", None) for i in range(depth)]
        first = copies[0]
        if first is None:
            continue  # adopting says that it is missing
        for i, copy in enumerate(copies):
            if copy is None or not torch.equal(copy, first):
                raise BackboneFileInvalid(
                    source,
                    f"block {i}'s copy of {part!r} is not block 0's. A backbone has one class table and one "
                    "time-step MLP; use the weights from before the copies were trained apart.",
                )
        tensors[f"emb.{part}"] = first
    return tensors


def to_diffusers(
    backbone: DiffusersDiT, extra_rows: Tensor | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the state dict of the `DiTTransformer2DModel` that predicts the same.

    extra_rows: (M, D) class rows learnt later. They come after the null row, which stays at N (the append
    layout), where diffusers' `DiTPipeline` looks for it.

    Raises ConfigInvalid where diffusers would predict something else.
    """
    spec, config = backbone.spec, backbone.config
    if backbone.profile != PROFILES["diffusers"]:
        raise ConfigInvalid(
            "profile",
            f"this backbone is of the profile {config.profile!r}, and diffusers computes its own, so the "
            "weights would predict other things there. To write them nevertheless, give the backbone the "
            "other profile first (with_profile).",
        )
    table = with_rows(backbone.class_table.detach(), extra_rows)
    tensors = {n: t.detach() for n, t in backbone.state_dict().items() if not n.startswith(("vae.", "emb."))}
    positions = tensors.pop(POSITIONS)
    usual = position_table(config.width, backbone.side, device=positions.device)
    if not torch.allclose(positions, usual.to(positions.dtype), rtol=0, atol=1e-5):
        raise ConfigInvalid("positions", "they are not the fixed table, which is the only one diffusers has.")
    tied = {part: backbone.get_parameter(f"emb.{part}").detach() for part in TIED[:-1]} | {TIED[-1]: table}
    for i in range(config.depth):
        tensors |= {f"transformer_blocks.{i}.norm1.emb.{part}": value.clone() for part, value in tied.items()}
    described = FIXED | {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": backbone.in_channels,
        "out_channels": backbone.out_channels,
        "num_layers": config.depth,
        "sample_size": backbone.side * config.patch,
        "patch_size": config.patch,
        "num_embeds_ada_norm": len(table) - 1,
        "norm_eps": backbone.profile.mlp_norm_eps,
        "_layout": layout(extra_rows),
        "_null_index": spec.null_index,
    }
    return described, tensors

"""The native DiT and diffusers' turned into each other.

Both layouts hold the same numbers, but for queries, keys and values, which are one layer in the official
layout and three in diffusers'. What the two *compute* from them differs by profile (`PROFILES`): a conversion
keeps the profile, and only `with_profile` changes it, which changes what the backbone predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from affinery.backbones.contract import on_meta
from affinery.backbones.dit import DiT
from affinery.backbones.dit_diffusers import DiffusersDiT
from affinery.backbones.dit_spec import DiTConfig
from affinery.backbones.patch_transformer import PatchTransformer

# Modules of the native layout, and of diffusers'; each has a weight, and a bias where it is no table.
TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "emb.timestep_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
TABLES = {
    "pos_embed": "pos_embed.pos_embed",
    "y_embedder.embedding_table.weight": "emb.class_embedder.embedding_table.weight",
}
FUSED, APART = "attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")

AnyDiT = TypeVar("AnyDiT", bound=PatchTransformer)


def to_native(backbone: DiffusersDiT) -> DiT:
    """The same backbone as a native DiT, of the same profile, with tensors of its own."""
    state = dict(backbone.state_dict())
    found = {native: state.pop(theirs) for native, theirs in _names(backbone.config.depth).items()}
    for native, theirs in _fused_names(backbone.config.depth).items():
        found[native] = torch.cat([state.pop(name) for name in theirs])
    return _rebuilt(DiT, backbone, backbone.config, found | state)


def from_native(backbone: DiT) -> DiffusersDiT:
    """The same backbone in diffusers' layers, of the same profile, with tensors of its own.

    Raises ConfigInvalid where diffusers has no such network: its mlp_ratio is 4.
    """
    state = dict(backbone.state_dict())
    found = {theirs: state.pop(native) for native, theirs in _names(backbone.config.depth).items()}
    for native, theirs in _fused_names(backbone.config.depth).items():
        found |= dict(zip(theirs, state.pop(native).chunk(3), strict=True))
    return _rebuilt(DiffusersDiT, backbone, backbone.config, found | state)


def with_profile(backbone: AnyDiT, profile: str) -> AnyDiT:
    """The same weights under another profile: another backbone, which predicts other things.

    It is right where weights were stored under another profile than they were trained under: diffusers'
    copies of the official checkpoints are such. Raises ConfigInvalid.
    """
    config = replace(backbone.config, profile=profile)
    return _rebuilt(type(backbone), backbone, config, backbone.state_dict())


def _names(depth: int) -> dict[str, str]:
    """The native name of every tensor that both layouts have → diffusers' name of it."""
    modules = dict(TOP)
    for i in range(depth):
        modules |= {f"blocks.{i}.{native}": f"transformer_blocks.{i}.{b}" for native, b in BLOCK.items()}
    parts = ("weight", "bias")
    return TABLES | {f"{a}.{part}": f"{b}.{part}" for a, b in modules.items() for part in parts}


def _fused_names(depth: int) -> dict[str, list[str]]:
    """The native name of every tensor of queries, keys and values → diffusers' names of its three parts."""
    return {
        f"blocks.{i}.{FUSED}.{part}": [f"transformer_blocks.{i}.{name}.{part}" for name in APART]
        for i in range(depth)
        for part in ("weight", "bias")
    }


def _rebuilt(
    to: type[AnyDiT], backbone: PatchTransformer, config: DiTConfig, state: Mapping[str, Tensor]
) -> AnyDiT:
    spec = replace(backbone.spec, arch=to.arch, config=config.spec_values(to.usual_profile))
    built = on_meta(spec, to)
    assert isinstance(built, to)
    copies = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    built.load_state_dict(copies, strict=True, assign=True)
    built.freeze()
    return built

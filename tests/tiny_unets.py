"""U-Nets, VAEs and text encoders small enough that a test takes milliseconds."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, BackboneSpec, Latent, Text
from affinery.backbones.text_encoder import END, START

CLASSES = ("coat", "bag", "boot")
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
TEXT_UNET = UNET | {
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "block_out_channels": [4, 8],
    "latent_channels": 4,
    "norm_num_groups": 2,
}
LATENT = Latent(channels=4, factor=2, scaling=0.5, shift=0.25, vae=VAE)
LETTERS = "abcdefgh"
PIECES = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ab", "abc</w>", START, END]
VOCAB = json.dumps({piece: i for i, piece in enumerate(PIECES)}).encode()
MERGES = b"a b\nab c</w>"
CLIP: dict[str, Any] = {
    "vocab_size": len(PIECES),
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 7,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
ENCODER = {"clip": CLIP, "pad": END, "vocab_bytes": len(VOCAB), "merges_bytes": len(MERGES)}
TEXT = Text(length=7, width=12, encoder=ENCODER)


def unet_spec(**changes: Any) -> BackboneSpec:
    """8 × 8 grey pixels, two stages."""
    values: dict[str, Any] = {"arch": "unet", "config": UNET, "class_names": CLASSES, "image_size": 8}
    return BackboneSpec(**values | {"channels": 1} | changes)


def text_spec(**changes: Any) -> BackboneSpec:
    """The same in Stable Diffusion's layout, with captions of seven tokens."""
    return unet_spec(**{"arch": "unet_condition", "config": TEXT_UNET, "text": TEXT} | changes)


def latent_spec(**changes: Any) -> BackboneSpec:
    """16 × 16 colour pixels, denoised as 4 × 8 × 8 latents."""
    config = UNET | {"in_channels": 4, "out_channels": 4}
    return unet_spec(**{"config": config, "image_size": 16, "channels": 3, "latent": LATENT} | changes)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, those that start at zero included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def built(spec: BackboneSpec, seed: int = 0, vocab: bytes = VOCAB, merges: bytes = MERGES) -> Backbone:
    """Frozen, with random weights and, where it has a text encoder, the vocabulary."""
    torch.manual_seed(seed)
    model = architecture(spec.arch).build(spec)
    randomised(model, seed)
    if model.text is not None:
        model.text.get_buffer("vocab").copy_(as_bytes(vocab))
        model.text.get_buffer("merges").copy_(as_bytes(merges))
    return model.freeze()


def as_bytes(content: bytes) -> Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)

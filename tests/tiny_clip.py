"""A CLIP of a few thousand weights, whose tokenizer knows letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.tiny_unets import MERGES, VOCAB


def save_clip(folder: Path) -> Path:
    """Writes it as transformers does. → the folder"""
    import transformers

    made: Any = transformers
    merges = [tuple(line.split()) for line in MERGES.decode().splitlines()]
    tokenizer = made.CLIPTokenizer(vocab=json.loads(VOCAB), merges=merges, model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = made.CLIPConfig(
        text_config={**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
        | {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made.CLIPModel(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    pictures = made.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    made.CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder

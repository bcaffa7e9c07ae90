"""Models that draw conditions, never trained and small enough for a test, in the folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SMALL: dict[str, Any] = {
    "depths": [1] * 4,
    "hidden_sizes": [8] * 4,
    "num_attention_heads": [1] * 4,
    "decoder_hidden_size": 8,
}


def save_depth(folder: Path) -> Path:
    """A GLPN, for pictures of 32 pixels or more."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GLPNForDepthEstimation(GLPNConfig(num_encoder_blocks=4, **SMALL)).save_pretrained(folder)
    GLPNImageProcessor(size_divisor=32).save_pretrained(folder)
    return folder


def save_segmentation(folder: Path) -> Path:
    """A Segformer of three classes."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    classes = ("ground", "sky", "tree")
    names: dict[str, Any] = {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SegformerForSemanticSegmentation(SegformerConfig(**SMALL, **names)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder

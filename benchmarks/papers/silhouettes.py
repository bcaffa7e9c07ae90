"""A spatial condition from real maps at small scale: what of a picture is figure, and what is ground.

The maps are the transparency that the pictures were published with. Transparent ground is black to Affinery,
so a silhouette is seen again in a sample as what is not black; `ceiling` says how well that rule finds the
maps in real pictures.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from affinery.diffusion.sampling import Draw
from trainers.conditions import colour
from trainers.data import Images, as_bytes
from trainers.evaluation.fidelity import mean_iou

SILHOUETTE = {"name": "segmentation", "channels": 3, "source": "maps"}
OPAQUE = 128
"""Of 255: from here on a pixel is figure."""
SEEN = 32
"""Of 255: a pixel as bright as this, in any channel, is figure."""


def silhouette(picture: Image.Image) -> bytes:
    """The map of a picture with transparency, as a PNG."""
    inside = picture.convert("RGBA").getchannel("A").point(lambda value: 255 * (value >= OPAQUE))
    painted = Image.new("RGB", picture.size, (0, 0, 0))
    painted.paste(colour(0), mask=inside.convert("L"))
    buffer = io.BytesIO()
    painted.save(buffer, "PNG")
    return buffer.getvalue()


def seen(images: Tensor) -> Tensor:
    """(n, C, H, W) bytes → (n, 3, H, W) bytes, in the maps' colours"""
    inside = (images.amax(dim=1, keepdim=True) >= SEEN).to(torch.uint8)
    return inside * torch.tensor(colour(0), dtype=torch.uint8).view(1, 3, 1, 1)


def fidelity(images: Tensor, draws: tuple[Draw, ...]) -> dict[str, float]:
    """Of samples in [−1, 1] against the maps that they were told."""
    told = torch.stack([as_bytes(draw.condition) for draw in draws if draw.condition is not None])
    return mean_iou(told, seen(as_bytes(images)))


def ceiling(real: Images) -> dict[str, float]:
    """The same of real pictures against their own maps."""
    assert real.conditions is not None
    return mean_iou(real.conditions, seen(real.images))

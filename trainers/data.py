"""From a dataset pack to tensors: decoded, cropped to a square, resized, and split in two, always alike."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainers.packs import IMAGES, read_manifest

if TYPE_CHECKING:
    from PIL.Image import Image

HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Images:
    """images: (n, C, H, W) bytes; labels: (n,)."""

    images: Tensor
    labels: Tensor

    def unit(self) -> Tensor:
        """The images in [−1, 1]."""
        return self.images.float() / 127.5 - 1


@dataclass(frozen=True)
class Split:
    """The images to learn from, and those kept back to judge by."""

    train: Images
    held_out: Images


def square(image: Image, size: int, channels: int) -> np.ndarray:
    """The middle square, resized; what is transparent counts as black. → (C, size, size) bytes"""
    from PIL import Image as Pillow

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((size, size), Pillow.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = np.asarray(resized, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def is_held_out(sha256: str) -> bool:
    """Whether an image is kept back: its own bytes decide, so the split never moves when a dataset grows."""
    return int(sha256[:8], 16) % 100 < HELD_OUT_PERCENT


def load_split(pack: Path, size: int, channels: int) -> Split:
    """A pack's images. Every class keeps one image or more to learn from. Raises DatasetChanged."""
    from PIL import Image as Pillow

    manifest = read_manifest(pack)
    held = [is_held_out(image.sha256) for image in manifest.images]
    for label in range(len(manifest.classes)):
        rows = [i for i, image in enumerate(manifest.images) if image.label == label]
        if rows and all(held[i] for i in rows):
            for i in rows:
                held[i] = False
    pixels = np.empty((len(manifest.images), channels, size, size), np.uint8)
    with zipfile.ZipFile(pack / IMAGES) as archive:
        for i, image in enumerate(manifest.images):
            with Pillow.open(io.BytesIO(archive.read(image.entry))) as opened:
                pixels[i] = square(opened, size, channels)
    labels = np.array([image.label for image in manifest.images], np.int64)
    kept_back = np.array(held)

    def part(rows: np.ndarray) -> Images:
        return Images(torch.from_numpy(pixels[rows]), torch.from_numpy(labels[rows]))

    return Split(part(~kept_back), part(kept_back))

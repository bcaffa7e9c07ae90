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
    """The middle square, resized. → (C, size, size) bytes

    What is transparent counts as black, a camera's rotation is undone, more than eight bits become eight; of
    an animation the first picture is taken.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    middle = image.crop((left, top, left + side, top + side))  # resize(box=…) would look beyond its border
    resized = middle.resize((size, size), Pillow.Resampling.BICUBIC)
    pixels = np.asarray(resized, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(image: Image) -> Image:
    """Grey of 16 bits, or of floats from 0 to 1, scaled to 8 bits; Pillow itself would cut it off."""
    from PIL import Image as Pillow

    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    scaled = values * 255 if image.mode == "F" else values / 257
    return Pillow.fromarray(np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8))


def is_held_out(sha256: str) -> bool:
    """Whether an image is kept back: its own bytes decide, so it stays on its side when a dataset grows."""
    return int(sha256[:8], 16) % 100 < HELD_OUT_PERCENT


def load_split(pack: Path, size: int, channels: int) -> Split:
    """A pack's images. Raises DatasetChanged.

    Every class keeps an image to learn from: where chance would hold all of its few images back, none is.
    """
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

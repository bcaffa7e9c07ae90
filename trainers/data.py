"""From a dataset pack to tensors: decoded, cropped to a square, resized, and split in two, always alike."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from affinery.errors import ConfigInvalid, PlaceInvalid
from trainers.conditions import maker, published
from trainers.latents import kept
from trainers.packs import IMAGES, PackedImage, read_manifest
from trainers.upright import upright

if TYPE_CHECKING:
    from PIL.Image import Image

HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Images:
    """images: (n, C, H, W) bytes; labels: (n,).

    captions: n texts, "" where an image has none; none at all where no image has one. conditions:
    (n, C', H, W) bytes, where a condition was asked for.
    """

    images: Tensor
    labels: Tensor
    captions: tuple[str, ...] = ()
    conditions: Tensor | None = None

    def unit(self) -> Tensor:
        """The images in [−1, 1]."""
        return as_unit(self.images)


def as_unit(images: Tensor) -> Tensor:
    """Bytes → [−1, 1]"""
    return images.float() / 127.5 - 1


def as_bytes(images: Tensor) -> Tensor:
    """The inverse of `as_unit`."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


@dataclass(frozen=True)
class Split:
    """The images to learn from, and those kept back to judge by."""

    train: Images
    held_out: Images


def square(image: Image, size: int, channels: int, blended: bool = True) -> np.ndarray:
    """The middle square, resized. → (C, size, size) bytes

    blended: new pixels may mix several old ones; the colours of a segmentation must not be mixed. What is
    transparent counts as black, a camera's rotation is undone, more than eight bits become eight; of an
    animation the first picture is taken.
    """
    from PIL import Image as Pillow

    image = _eight_bits(upright(image))
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
    resampling = Pillow.Resampling.BICUBIC if blended else Pillow.Resampling.NEAREST
    resized = middle.resize((size, size), resampling)
    pixels = np.asarray(resized, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def read_square(path: Path, size: int, channels: int, blended: bool = True) -> np.ndarray:
    """A picture of a file, as `square`. Raises ConfigInvalid where it is none."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as opened:
            return square(opened, size, channels, blended)
    except (OSError, ValueError, Pillow.DecompressionBombError) as error:
        raise PlaceInvalid("the picture", str(path), "cannot be read as a picture", str(error)) from error


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


def load_split(
    pack: Path,
    size: int,
    channels: int,
    condition: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> Split:
    """A pack's images, and their conditions where one is asked for. Raises DatasetChanged or ConfigInvalid.

    Every class keeps an image to learn from: where chance would hold all of its few images back, none is.
    cache: where what is decoded or drawn is kept, so that it is made once; it is mapped from there, and only
    what is indexed is read.
    """
    manifest = read_manifest(pack)
    held = [is_held_out(image.sha256) for image in manifest.images]
    for label in range(len(manifest.classes)):
        rows = [i for i, image in enumerate(manifest.images) if image.label == label]
        if rows and all(held[i] for i in rows):
            for i in rows:
                held[i] = False
    # Those to learn from come first, so that both parts are one stretch of what is kept.
    images = [manifest.images[i] for i in sorted(range(len(held)), key=lambda i: held[i])]
    shape = (len(images), channels, size, size)
    with zipfile.ZipFile(pack / IMAGES) as archive:
        pixels = _bytes(
            cache,
            f"{manifest.digest}/images/{shape}",
            shape,
            lambda: (_decoded(archive, image.entry, size, channels) for image in images),
        )
        drawn = (
            None
            if condition is None
            else _conditions(archive, images, manifest.digest, pixels, condition, cache)
        )
    labels = torch.tensor([image.label for image in images], dtype=torch.long)
    captions = [image.text or "" for image in images]

    def part(chosen: slice) -> Images:
        return Images(
            pixels[chosen],
            labels[chosen],
            tuple(captions[chosen]) if any(captions) else (),
            None if drawn is None else drawn[chosen],
        )

    learnt = held.count(False)
    return Split(part(slice(learnt)), part(slice(learnt, None)))


def _bytes(
    cache: Path | None, key: str, shape: tuple[int, ...], made: Callable[[], Iterable[np.ndarray]]
) -> Tensor:
    """Pictures in one tensor of bytes: mapped from the cache, or in memory where there is none."""
    if cache is not None:
        return kept(
            cache, key, shape, lambda: (torch.from_numpy(one.copy())[None] for one in made()), torch.uint8
        )
    found = torch.empty(shape, dtype=torch.uint8)
    for place, one in zip(found.numpy(), made(), strict=True):
        place[:] = one
    return found


def _decoded(
    archive: zipfile.ZipFile, entry: str, size: int, channels: int, blended: bool = True
) -> np.ndarray:
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(archive.read(entry))) as opened:
        return square(opened, size, channels, blended)


def _conditions(
    archive: zipfile.ZipFile,
    images: Sequence[PackedImage],
    digest: str,
    pixels: Tensor,
    condition: Mapping[str, Any],
    cache: Path | None,
) -> Tensor:
    """(n, C', size, size) bytes: cut from the dataset's maps, or drawn from the images as they are learnt."""
    size, channels = pixels.shape[-1], int(condition["channels"])

    def cut() -> Iterator[np.ndarray]:
        blended = condition["name"] != "segmentation"
        for image in images:
            if image.condition is None:
                raise ConfigInvalid(
                    "condition", f"{image.source_name} has no map of {condition['name']} in its dataset."
                )
            yield _decoded(archive, image.condition.entry, size, channels, blended)

    def drawn() -> Iterator[np.ndarray]:
        draw = maker(condition)
        for image in pixels:
            yield draw(image.numpy()).astype(np.uint8)

    made = cut if condition["source"] == "maps" else drawn
    key = f"{digest}/conditions/{json.dumps(published(condition), sort_keys=True)}/{tuple(pixels.shape)}"
    return _bytes(cache, key, (len(images), channels, size, size), made)

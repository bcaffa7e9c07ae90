"""A contact sheet: a few images of every class, side by side, so that a mistake in a dataset is seen."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affinery import lettering
from trainers import packs
from trainers.packs import Manifest, PackedImage
from trainers.upright import upright

if TYPE_CHECKING:
    from PIL.Image import Image

CELL, GAP, NAMES, TITLE = 64, 4, 180, 30
MOST_CLASSES, A_CLASS = 40, 12
INK, FAINT, PAPER = (235, 235, 235), (150, 150, 155), (24, 24, 27)


def contact_sheet(pack: Path, title: str) -> bytes:
    """A PNG of a pack that was checked: a line a class, its name, its count, images from all over it."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    manifest = packs.read_manifest(pack)
    chosen = _chosen(manifest)
    height = TITLE + len(chosen) * (CELL + GAP) + GAP
    sheet = Pillow.new("RGB", (NAMES + A_CLASS * (CELL + GAP) + GAP, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), lettering.font(13)
    left_out = len(manifest.classes) - len(chosen)
    more = f", {left_out} further classes not shown" if left_out else ""
    many, classes = len(manifest.images), len(manifest.classes)
    counted = f"{many:,} image{'s' * (many != 1)}, {classes} class{'es' * (classes != 1)}{more}"
    pen.text((GAP, 7), f"{lettering.drawable(title, font)}   {counted}", fill=INK, font=font)
    with zipfile.ZipFile(pack / packs.IMAGES) as archive:
        for line, (label, images) in enumerate(chosen):
            top = TITLE + line * (CELL + GAP)
            name = lettering.drawable(manifest.classes[label], font)
            pen.text((GAP, top + 12), name if len(name) <= 22 else f"{name[:21]}…", fill=INK, font=font)
            pen.text((GAP, top + 32), f"{manifest.class_counts[label]:,}", fill=FAINT, font=font)
            for i, image in enumerate(images):
                cell = _thumbnail(archive.read(image.entry))
                sheet.paste(cell, (NAMES + i * (CELL + GAP), top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _chosen(manifest: Manifest) -> list[tuple[int, Sequence[PackedImage]]]:
    """By class, images at equal distances: the first ones are often of one kind."""
    by_class: dict[int, list[PackedImage]] = {}
    for image in manifest.images:
        by_class.setdefault(image.label, []).append(image)
    shown = sorted(by_class)[:MOST_CLASSES]
    return [(label, _spread(by_class[label])) for label in shown]


def _spread(images: Sequence[PackedImage]) -> Sequence[PackedImage]:
    if len(images) <= A_CLASS:
        return images
    return [images[i * len(images) // A_CLASS] for i in range(A_CLASS)]


def _thumbnail(content: bytes) -> Image:
    """The whole image in the middle of a cell: turned as its camera says, transparent on black."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    cell = Pillow.new("RGBA", (CELL, CELL), (0, 0, 0, 255))
    with Pillow.open(io.BytesIO(content)) as opened:
        image = _eight_bits(upright(opened))
        fitted = ImageOps.contain(image.convert("RGBA"), (CELL, CELL))
    at = ((CELL - fitted.width) // 2, (CELL - fitted.height) // 2)
    cell.alpha_composite(fitted, at)
    return cell.convert("RGB")


def _eight_bits(image: Image) -> Image:
    if image.mode == "La":  # Pillow converts it to nothing else
        return image.convert("LA")
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    return (
        image.convert("F").point(lambda value: value * (255 if image.mode == "F" else 1 / 257)).convert("L")
    )

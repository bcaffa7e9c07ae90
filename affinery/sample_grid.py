"""The picture of a model card: what each task draws from pinned seeds, read without torch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affinery import lettering, tensor_files

IMAGES = "images"
TASKS_LIMIT, SIDE, GAP, LINE = 40, 64, 4, 20
INK, PAPER = (235, 235, 235), (24, 24, 27)


def sample_grid(golden: Sequence[tuple[str, Path]]) -> bytes | None:
    """A PNG with a line a task, of the first tasks; None where no golden file holds pictures."""
    lines = [(name, pixels) for name, path in golden[:TASKS_LIMIT] if (pixels := _pixels(path)) is not None]
    if not lines:
        return None
    from PIL import Image, ImageDraw

    width = GAP + max(len(pixels) for _, pixels in lines) * (SIDE + GAP)
    height = GAP + len(lines) * (LINE + SIDE + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font, top = ImageDraw.Draw(sheet), lettering.font(12), GAP
    for name, pixels in lines:
        pen.text((GAP, top), lettering.drawable(name, font), fill=INK, font=font)
        for i, one in enumerate(pixels):
            small = one.shape[0] < SIDE
            how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(one).resize((SIDE, SIDE), how), (GAP + i * (SIDE + GAP), top + LINE))
        top += LINE + SIDE + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(path: Path) -> NDArray[np.uint8] | None:
    """(n, H, W, 3) of a golden file; None where it holds no such pictures."""
    try:
        entry = tensor_files.read_header(path).tensors.get(IMAGES)
    except (OSError, tensor_files.NotSafetensors):
        return None
    if entry is None or entry.dtype != "F32" or len(entry.shape) != 4 or not math.prod(entry.shape):
        return None
    values = np.fromfile(path, np.float32, math.prod(entry.shape), offset=entry.start).reshape(entry.shape)
    grey = values[:, :1].repeat(3, axis=1) if entry.shape[1] < 3 else values[:, :3]
    scaled = np.rint((np.clip(np.nan_to_num(grey), -1, 1) + 1) * 127.5)
    pixels: NDArray[np.uint8] = scaled.astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels

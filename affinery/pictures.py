"""One image of a model as the bytes of a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def png_of(image: Tensor) -> bytes:
    """(C, H, W) in [−1, 1] as a PNG of its own size: grey below three channels, else the first three."""
    from PIL import Image

    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    grey = pixels.shape[2] < 3
    Image.fromarray(pixels[:, :, 0] if grey else pixels[:, :, :3]).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

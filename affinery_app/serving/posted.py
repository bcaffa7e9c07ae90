"""Pictures that a request brings: PNGs in base64, of whoever sends them."""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from functools import partial
from typing import TYPE_CHECKING

from affinery.errors import ConfigInvalid
from affinery_app.drawing import Picture

if TYPE_CHECKING:
    import numpy as np

CHARACTERS = 8 << 20  # of one picture in base64
PIXELS = 4096 * 4096  # which a few kilobytes may claim to be


def posted(name: str, text: str | None) -> Picture | None:
    """name: the field that brings it. Raises ConfigInvalid where it is no base64."""
    if text is None:
        return None
    try:
        return partial(_square, name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ConfigInvalid(name, f"it is no base64 ({error}).") from error


def _square(name: str, content: bytes, size: int, channels: int, blended: bool) -> np.ndarray:
    """Raises ConfigInvalid where it is no PNG, or a larger one than is taken; then nothing was unpacked."""
    from PIL import Image

    from trainers.data import square

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            if opened.width * opened.height > PIXELS:
                raise ValueError(f"{opened.width} × {opened.height} are more than {PIXELS:,} pixels")
            return square(opened, size, channels, blended)
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
        raise ConfigInvalid(name, f"it cannot be read as a PNG ({error}).") from error

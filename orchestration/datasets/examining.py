"""Whether an image can be learnt from: it decodes wholly, is neither tiny nor huge, of a known mode."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import dataclass, field

from affinery.errors import words_of
from orchestration.datasets.listing import Found
from orchestration.errors import DatasetInvalid
from trainers.upright import upright

LARGEST_PIXELS = 50_000_000
LARGEST_BYTES = 200_000_000
SMALLEST_SIDE = 2
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""No other decoder sees a file, whatever it is called: Pillow's for EPS would have Ghostscript run it."""
MODES = {"1", "L", "La", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"}
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Examined:
    """What is known of an image that was decoded."""

    width: int
    height: int
    mode: str
    frames: int = 1


class Unfit(Exception):
    """An image that cannot be learnt from. Args: in a word, in a sentence."""


@dataclass
class Unfits:
    """Those of a source: all of them are told, with their names and in numbers."""

    listed: list[tuple[str, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, file: Found, error: Unfit) -> None:
        kind, reason = error.args
        self.kinds[kind] += 1
        if len(self.listed) < SHOWN:
            self.listed.append((file.place, reason))

    @property
    def count(self) -> int:
        return self.kinds.total()

    def told(self) -> str:
        """All of them in a sentence: how many of each, and the first by name."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        first = "; ".join(f"{place}: {reason}" for place, reason in self.listed)
        return f"{kinds} ({first}{' …' if self.count > SHOWN else ''})"


def read(file: Found) -> bytes:
    """A file's bytes. Raises Unfit, and DatasetInvalid where the system does not give them."""
    try:
        size = file.path.stat().st_size
        if not size:
            raise Unfit("empty", "it is empty")
        if size > LARGEST_BYTES:
            raise Unfit("too large", f"it has {size:,} bytes, over {LARGEST_BYTES:,}")
        return file.path.read_bytes()
    except OSError as error:
        raise DatasetInvalid(file.place, f"it cannot be read: {words_of(error)}") from error


def examine(content: bytes) -> Examined:
    """Decodes an image wholly. Raises Unfit: corrupt, tiny, huge, of a mode that is not learnt from."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                mode, frames = str(image.mode), int(getattr(image, "n_frames", 1))
                if width * height > LARGEST_PIXELS:
                    raise Unfit("too large", f"{width} × {height} pixels are over {LARGEST_PIXELS:,}")
                if min(width, height) < SMALLEST_SIDE:
                    raise Unfit("too small", f"{width} × {height} pixels are too few to learn from")
                if mode not in MODES and not mode.startswith("I;"):
                    raise Unfit(
                        "of a mode not learnt", f"its mode {mode} has no way to grey or RGB; convert it"
                    )
                image.load()
                upright(image)
                return Examined(width, height, mode, frames)
    except Unfit:
        raise
    except Image.DecompressionBombError as error:
        raise Unfit("too large", f"its pixels are over {LARGEST_PIXELS:,}") from error
    except UnidentifiedImageError as error:
        reason = f"it cannot be read as an image: it is none of {', '.join(FORMATS)}"
        raise Unfit("corrupt", reason) from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise Unfit("corrupt", f"it cannot be read as an image ({error})") from error

"""Names in pictures, in whatever script they are written; what no font has stands there by its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

OWN = "DejaVu Sans"  # it comes with matplotlib, and has most alphabets
EMPTY = "Last Resort High-Efficiency"  # so does this: it has a box for every character
NOWHERE = "\U0010ffff"


@dataclass(frozen=True)
class Letters:
    """For matplotlib's figures: families, in the order in which they are asked, and what none of them has."""

    families: list[str]
    lacking: frozenset[str]

    def spelt(self, text: str) -> str:
        """A name as it is drawn. matplotlib would read what is between dollars as a formula."""
        return numbered(text, lambda character: character not in self.lacking).replace("$", r"\$")


def letters_for(texts: Iterable[str]) -> Letters:
    """DejaVu, and of the fonts that are installed those that have what it lacks."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    lacking = {character for text in texts for character in text}
    families = [OWN]
    upright = {
        each.name: each.fname
        for each in fontManager.ttflist
        if (each.style, each.weight) == ("normal", 400) and each.name not in (OWN, EMPTY)
    }
    for family, path in [(OWN, findfont(OWN)), *sorted(upright.items())]:
        font = get_font(path)
        found = {character for character in lacking if font.get_char_index(ord(character))}
        if found and family != OWN:
            families.append(family)
        lacking -= found
        if not lacking:
            break
    return Letters(families, frozenset(lacking))


def font(size: int) -> FreeTypeFont:
    """DejaVu for a picture of Pillow, which knows no other to fall back on."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def drawable(text: str, font: FreeTypeFont) -> str:
    """A name as this font can draw it."""
    none = bytes(font.getmask(NOWHERE))
    return numbered(text, lambda character: bytes(font.getmask(character)) != none)


def numbered(text: str, has: Callable[[str], bool]) -> str:
    """has: whether a character can be drawn."""
    return "".join(c if has(c) else f"\\u{ord(c):04x}" for c in text if c.isprintable())

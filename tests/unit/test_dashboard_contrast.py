"""The colours of the pages, light and dark, by the formula of WCAG 2.2: text that can be read (AA)."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

import affinery_app.dashboard

CSS = (Path(affinery_app.dashboard.__file__).parent / "static/app.css").read_text()
TOKENS = {
    name: (light, dark)
    for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", CSS)
}
GROUNDS = ("paper", "side", "panel", "hover")
WORDS = ("ink", "faint", "accent", "good", "warn", "bad")
DRAWN = ("strong-rule", *(f"line-{i}" for i in range(10)))
Colour = tuple[float, float, float]


def colour(name: str, theme: int) -> Colour:
    digits = TOKENS[name][theme]
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def mixed(over: Colour, under: Colour, share: float) -> Colour:
    """As color-mix(in srgb, over share, transparent) looks upon what is under it."""
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(over, under, strict=True))
    return red, green, blue


def luminance(of: Colour) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in of)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_formula_knows_black_on_white() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_word_can_be_read_on_every_ground(theme: int) -> None:
    pairs = [*product(WORDS, GROUNDS), ("on-accent", "accent")]
    found = {pair: contrast(colour(pair[0], theme), colour(pair[1], theme)) for pair in pairs}
    assert {pair: round(ratio, 2) for pair, ratio in found.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_line_border_and_class_is_seen_on_its_ground(theme: int) -> None:
    found = {
        pair: contrast(colour(pair[0], theme), colour(pair[1], theme))
        for pair in product(DRAWN, ("paper", "panel"))
    }
    assert {pair: round(ratio, 2) for pair, ratio in found.items() if ratio < 3} == {}


TINT = r"\{[^}]*background: color-mix\(in srgb, var\(--(\w+)\) (\d+)%, transparent\)"
TINTED = [
    (r"\.shade-\d+ ", "panel"),
    (r"\.nav a\[aria-current\] ", "side"),
    (r"\.wrong ", "paper"),
    (r"\.said, \.wrong ", "paper"),
]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("rule", "under"), TINTED)
def test_words_on_tinted_grounds_can_be_read(rule: str, under: str, theme: int) -> None:
    tints = re.findall(rule + TINT, CSS)
    assert tints
    ink, ground = colour("ink", theme), colour(under, theme)
    found = {tint: contrast(ink, mixed(colour(tint[0], theme), ground, int(tint[1]) / 100)) for tint in tints}
    assert {tint: round(ratio, 2) for tint, ratio in found.items() if ratio < 4.5} == {}

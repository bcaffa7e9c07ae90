"""Names in pictures: whatever their script, a font draws them or their number stands there; no boxes."""

from __future__ import annotations

import warnings

import torch
from matplotlib.font_manager import findfont, get_font

from affinery import lettering
from trainers.pictures import chart, heat_map, tile, titled

CHINESE = "数字"


def test_a_name_is_drawn_by_dejavu_where_that_has_its_letters() -> None:
    for name in ("digits", "цифры", "ψηφία", "أرقام"):
        letters = lettering.letters_for([name])
        assert letters == lettering.Letters([lettering.OWN], frozenset())
        assert letters.spelt(name) == name
        assert lettering.drawable(name, lettering.font(13)) == name


def test_what_dejavu_lacks_is_drawn_by_a_font_that_is_there() -> None:
    letter = "\u1d81"  # STIX, which comes with matplotlib, has it
    letters = lettering.letters_for([f"a{letter}"])
    assert letters.families[0] == lettering.OWN
    assert [bool(get_font(findfont(family)).get_char_index(ord(letter))) for family in letters.families] == [
        False,
        True,
    ]
    assert letters.spelt(f"a{letter}") == f"a{letter}"


def test_what_no_font_has_stands_there_by_its_number() -> None:
    assert lettering.Letters([lettering.OWN], frozenset(CHINESE)).spelt(f"a {CHINESE}") == r"a \u6570\u5b57"
    assert lettering.drawable(f"a {CHINESE}", lettering.font(13)) == r"a \u6570\u5b57"


def test_a_name_between_dollars_is_no_formula() -> None:
    assert lettering.letters_for(["$x$"]).spelt("$x$") == r"\$x\$"


def test_no_picture_lacks_a_letter_of_a_name() -> None:
    names, title = (CHINESE, "$digits$"), f"{CHINESE}: 距離"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every box that it draws
        heat_map([[0.1, None], [0.2, 0.3]], names, names, title)
        chart({name: [(1, 0.5), (2, 0.25)] for name in names}, "steps", "distance", title)
    plain = tile(torch.zeros(2, 1, 4, 4), 2)
    assert titled([(CHINESE, plain)]).tobytes() == titled([(r"\u6570\u5b57", plain)]).tobytes()

"""The filter language: what it reads, and how it says where it cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import errors, filters
from registry.filters import All, Not, Some, Term


def test_and_binds_closer_than_or_and_brackets_closer_than_both() -> None:
    a, b, c = Term("a", "=", "1", 0), Term("b", ">=", "2", 7), Term("c", "!=", "x y", 16)
    assert filters.parse('a=1 or b >= 2 and c!="x y"') == Some((a, All((b, Term("c", "!=", "x y", 18)))))
    assert filters.parse("a=1") == a
    assert filters.parse("(a=1)") == Term("a", "=", "1", 1)
    assert filters.parse("not a=1 AND b=2") == All((Not(Term("a", "=", "1", 4)), Term("b", "=", "2", 12)))
    assert c.value == "x y"


def test_a_quoted_value_may_hold_anything() -> None:
    assert filters.parse(r'tag.a="\"and\" (or) \\ \'=\' ; --"') == Term(
        "tag.a", "=", "\"and\" (or) \\ '=' ; --", 0
    )
    assert filters.parse('a=""') == Term("a", "=", "", 0)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("kind", 4),
        ("kind=", 5),
        ("kind affiner", 5),
        ("kind==affiner", 5),
        ("kind=affiner task=x", 13),
        ("kind=affiner and", 16),
        ("(kind=affiner", 13),
        ("kind=affiner)", 12),
        ('kind="affiner', 5),
        ("=affiner", 0),
        ("kind=(a)", 5),
        ("a=1 or or b=2", 10),
        ("!a=1", 0),
        ("a=1; drop table node", 5),
        ("(" * 30 + "a=1" + ")" * 30, 21),
        ("not " * 30 + "a=1", 84),
        (" and ".join(["a=1"] * 60), 400),
        ("a=" + "x" * 3000, 2000),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_position(text: str, position: int) -> None:
    with pytest.raises(errors.FilterInvalid) as caught:
        filters.parse(text)
    assert caught.value.args[1] == position
    assert len(str(caught.value)) < 300


def refusal(text: str) -> errors.FilterInvalid | None:
    try:
        filters.parse(text)
    except errors.FilterInvalid as refused:
        return refused
    return None


@given(st.text(max_size=200) | st.text(alphabet='ab=<>!() "\\andornt.', max_size=60))
def test_any_text_is_read_or_refused_with_a_position_in_it(text: str) -> None:
    refused = refusal(text)
    if refused is not None:
        assert 0 <= refused.args[1] <= len(text)
        assert all(each.isprintable() or each == "\n" for each in str(refused))

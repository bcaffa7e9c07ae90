"""Which names can stand in references and paths, and how references are read."""

from __future__ import annotations

import pytest

from registry import errors, names


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "..", ".", ".hidden", "a/b", "a\\b", "/", "-rf", "--help", "a@1", "@", "kind:name", ":"),
        *(
            "",
            " ",
            "\t",
            " lead",
            "trail ",
            "a\u00a0b",
            "a\nb",
            "a\x00b",
            "a\x1b[31mb",
            "a\u202eb",
            "a\u200bb",
        ),
        *("a\ud800b", "a\u2028b", "x" * 129, "x" * 300, "日" * 100),
    ],
)
def test_a_hostile_name_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(errors.NameInvalid) as caught:
        names.checked("task", name)
    assert "cannot be the name of a task: it" in str(caught.value) or "has a meaning" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300
    str(caught.value).encode()


@pytest.mark.parametrize(
    "name", ["a", "digits", "CUB 200", "naïve", "花", "a.b", "a..b", "v1-2_3", "x" * 128, "🌸"]
)
def test_an_ordinary_name_in_any_script_is_kept(name: str) -> None:
    assert names.checked("task", name) == name


def test_two_spellings_of_one_name_are_one_name() -> None:
    assert names.checked("task", "Fru\u0308hling") == names.checked("task", "Frühling")
    assert names.parse("Fru\u0308hling").name == "Frühling"


def test_class_names_may_hold_what_references_may_not() -> None:
    for name in (
        "n01440764 tench, Tinca tinca",
        "a/b",
        "-",
        "user@host",
        "C:",
        "日本 桜",
        "👩\u200d🔬",
        "می\u200cخواهم",
    ):
        assert names.checked_class(name) == name
    for name in ("", "  ", "a\nb", "a\u202eb", "a\ud800b", "x" * 129):
        with pytest.raises(errors.NameInvalid):
            names.checked_class(name)


@pytest.mark.parametrize(
    ("text", "kind", "name", "version", "alias"),
    [
        ("digits", None, "digits", None, None),
        (" digits ", None, "digits", None, None),
        ("digits@12", None, "digits", 12, None),
        ("digits@v3", None, "digits", 3, None),
        ("adapter:digits@3", "adapter", "digits", 3, None),
        ("backbone:small dit", "backbone", "small dit", None, None),
        ("abcdef", None, "abcdef", None, None),
        ("digits@champion", None, "digits", None, "champion"),
        ("adapter:digits@v3-try", "adapter", "digits", None, "v3-try"),
    ],
)
def test_references_are_read(
    text: str, kind: str | None, name: str, version: int | None, alias: str | None
) -> None:
    ref = names.parse(text)
    assert (ref.kind, ref.name, ref.version, ref.alias) == (kind, name, version, alias)


@pytest.mark.parametrize("name", ["", "12", "v3", "Champion", "a b", "-x", ".x", "ä", "a@b", "x" * 65, "a\n"])
def test_an_alias_that_could_be_taken_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(errors.NameInvalid, match="cannot be the name of"):
        names.checked_alias(name)
    assert names.checked_alias("release-1.2_a") == "release-1.2_a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "@1",
        "a@",
        "a@0",
        "a@-1",
        "a@X",
        "a\x00b",
        "\ud800",
        "a\x1b[2J",
        "a@x y",
        "a@ä",
        "a@" + "x" * 65,
        "a@1@2",
        "a@٣",
        "a@99999999999",
        "nothing:a",
        "adapter:",
        "a@" + "9" * 5000,
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(errors.RefInvalid):
        names.parse(text)


def test_six_hexadecimal_digits_may_be_a_digest_and_five_may_not() -> None:
    assert names.parse("abcdef").may_be_digest
    assert names.parse("ABCDEF").may_be_digest
    assert not names.parse("abcde").may_be_digest
    assert not names.parse("abcdef@1").may_be_digest
    assert not names.parse("abcdef@champion").may_be_digest
    assert not names.parse("a" * 65).may_be_digest

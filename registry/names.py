"""Names, and how the references that people write are read; registry/refs.py says what they mean."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from registry.errors import NameInvalid, RecordInvalid, RefInvalid, article

MAX_LENGTH = 128
_MAX_BYTES = 240  # a name becomes part of a file name, which most file systems end at 255 bytes
_ALIAS = re.compile(r"(?!v?[0-9]+$)[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{6,64}")
# Control, format (which turn the direction of text or hide in it), lone surrogates, line and paragraph ends.
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # Persian words and joined emoji are written with these
NODE = "node"
KINDS = (
    *("adapter", "backbone", "certificate", "composition", "dataset", "evaluation", "export", "run", "task"),
)


def checked(what: str, name: str) -> str:
    """The name in Unicode's NFC; NameInvalid where it cannot stand in references and paths."""
    reason = _fault(name)
    if reason:
        raise NameInvalid(what, name, reason)
    name = unicodedata.normalize("NFC", name)
    reason = _forbidden_place(name)
    if reason:
        raise NameInvalid(what, name, reason)
    return name


def checked_class(name: str) -> str:
    """A class name: kept as given (spaces, any script), in NFC, without characters that a terminal obeys."""
    reason = _fault(name, _JOINERS)
    if reason:
        raise NameInvalid("class", name, reason)
    return unicodedata.normalize("NFC", name)


def checked_alias(name: str) -> str:
    """The name of an alias; NameInvalid where it could be taken for a version or cannot be typed."""
    if not _ALIAS.fullmatch(name):
        reason = "an alias is 1 to 64 of a-z, 0-9, '.', '_', '-', and is no number"
        raise NameInvalid("alias", name, reason)
    return name


def checked_text(what: str, text: str, most: int, *, lines: bool = False) -> str:
    """Free text in NFC, not too long, without characters that a terminal obeys; RecordInvalid otherwise."""
    text = unicodedata.normalize("NFC", text.strip())
    if not text:
        raise RecordInvalid(what, "it says nothing")
    if len(text) > most:
        raise RecordInvalid(what, f"it is longer than {most:,} characters")
    allowed = _JOINERS + ("\n\t" if lines else "")
    for character in text:
        if unicodedata.category(character) in _INVISIBLE and character not in allowed:
            raise RecordInvalid(what, f"it holds the control character U+{ord(character):04X}")
    return text


def _fault(name: str, allowed: str = "") -> str | None:
    if not name or not name.strip():
        return "it is empty"
    if len(name) > MAX_LENGTH or len(name.encode("utf-8", "surrogatepass")) > _MAX_BYTES:
        return f"it is longer than {MAX_LENGTH} characters or {_MAX_BYTES} bytes"
    for character in name:
        if unicodedata.category(character) in _INVISIBLE and character not in allowed:
            return f"it holds the control character U+{ord(character):04X}"
    return None


def _forbidden_place(name: str) -> str | None:
    for character in "/\\@:":
        if character in name:
            return f"{character!r} has a meaning of its own in references and paths"
    if name[0] in "-.":
        return f"it starts with {name[0]!r}, which commands and folders read otherwise"
    if name != name.strip() or any(unicodedata.category(c) == "Zs" and c != " " for c in name):
        return "it has spaces at an end, or spaces other than the plain one"
    return None


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference as written: its kind, and its version or alias, where they were given.

    node_id: where it names nothing and gives a node's number; name is empty then.
    """

    text: str
    name: str
    kind: str | None = None
    version: int | None = None
    alias: str | None = None
    node_id: int | None = None

    @property
    def may_be_digest(self) -> bool:
        """Six or more hexadecimal digits, and neither version nor alias."""
        plain = self.version is None and self.alias is None
        return plain and _DIGEST_PREFIX.fullmatch(self.name.lower()) is not None


def parse(text: str) -> Ref:
    """Read a reference; RefInvalid where that cannot be done. Nothing is looked up."""
    rest, kind, version, alias = text.strip(), None, None, None
    for character in rest:
        if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS:
            raise RefInvalid(text, f"it holds the control character U+{ord(character):04X}.")
    if ":" in rest:
        kind, _, rest = rest.partition(":")
        if kind == NODE:
            return Ref(text, "", node_id=_node_id(text, rest))
        if kind not in KINDS:
            raise RefInvalid(text, f"{kind!r} is not one of {', '.join(KINDS)}.")
    if "@" in rest:
        rest, _, number = rest.partition("@")
        if _ALIAS.fullmatch(number):
            alias = number
        else:
            version = _version(text, number)
    if not rest:
        raise RefInvalid(text, "it names nothing.")
    return Ref(text, unicodedata.normalize("NFC", rest), kind, version, alias)


def _version(text: str, number: str) -> int:
    digits = number.removeprefix("v")
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits[:19]) < 2**31 and len(digits) < 11):
        shown = number if len(number) <= 40 else number[:37] + "…"
        raise RefInvalid(text, f"{shown!r} is neither a version number, which is 1 or more, nor an alias.")
    return int(digits)


def _node_id(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19 and int(digits) > 0):
        raise RefInvalid(text, "a node's number is 1 or more.")
    return int(digits)


def parse_as(kind: str, text: str) -> Ref:
    """Read a reference to a thing of this kind; RefInvalid where it says that it is another."""
    ref = parse(text)
    if ref.kind not in (None, kind):
        raise RefInvalid(
            text, f"it speaks of {article(ref.kind or '')} {ref.kind}, and {article(kind)} {kind} is wanted."
        )
    return ref

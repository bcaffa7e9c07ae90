"""The filter language of searches, read into a tree. What its fields mean in SQL is in registry/search.py.

filter  = term { "and" term | "or" term }      "and" binds closer than "or"
term    = "not" term | "(" filter ")" | field operator value
field   = a word: kind, task, metric.recognition, tag.owner, below, …
operator= "=" | "!=" | ">=" | "<=" | ">" | "<"
value   = a word, or text in double quotes, in which a backslash keeps the next character
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import FilterInvalid

MOST_CHARACTERS = 2000
MOST_TERMS = 50
MOST_DEPTH = 20
_TOKEN = re.compile(
    r"\s*(?:(?P<operator>>=|<=|!=|=|>|<)|(?P<bracket>[()])"
    r'|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[^\s()<>=!"]+))',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Term:
    """A field compared with a value; position is where it stands in the filter, from 0."""

    field: str
    operator: str
    value: str
    position: int


@dataclass(frozen=True, slots=True)
class Not:
    """Everything but."""

    part: Filter


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds."""

    parts: tuple[Filter, ...]


Filter = Term | Not | All | Some


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def parse(text: str) -> Filter:
    """Read a filter; FilterInvalid with the position of the first thing that cannot be read."""
    if len(text) > MOST_CHARACTERS:
        raise FilterInvalid(text, MOST_CHARACTERS, f"it is longer than {MOST_CHARACTERS:,} characters")
    reader = _Reader(text)
    found = reader.filter(0)
    if reader.peek().kind != "end":
        raise FilterInvalid(text, reader.peek().position, "'and', 'or' or the end is wanted here")
    return found


class _Reader:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.at = 0
        self.terms = 0

    def peek(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def word(self, word: str) -> bool:
        """Whether this keyword comes next; then it is taken."""
        token = self.peek()
        if token.kind == "word" and token.text.lower() == word:
            self.take()
            return True
        return False

    def filter(self, depth: int) -> Filter:
        parts = [self.conjunction(depth)]
        while self.word("or"):
            parts.append(self.conjunction(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def conjunction(self, depth: int) -> Filter:
        parts = [self.term(depth)]
        while self.word("and"):
            parts.append(self.term(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def term(self, depth: int) -> Filter:
        if depth > MOST_DEPTH:
            raise FilterInvalid(self.text, self.peek().position, f"it is nested deeper than {MOST_DEPTH}")
        if self.word("not"):
            return Not(self.term(depth + 1))
        token = self.take()
        if token.kind == "bracket" and token.text == "(":
            inside = self.filter(depth + 1)
            closing = self.take()
            if closing.text != ")" or closing.kind != "bracket":
                raise FilterInvalid(self.text, closing.position, "')' is wanted here")
            return inside
        if token.kind != "word":
            raise FilterInvalid(
                self.text, token.position, "a field is wanted here, such as metric.recognition"
            )
        operator = self.take()
        if operator.kind != "operator":
            raise FilterInvalid(self.text, operator.position, "one of =, !=, >=, <=, >, < is wanted here")
        value = self.take()
        if value.kind not in ("word", "quoted"):
            raise FilterInvalid(self.text, value.position, 'a value is wanted here: a word, or "text"')
        self.terms += 1
        if self.terms > MOST_TERMS:
            raise FilterInvalid(self.text, token.position, f"it has more than {MOST_TERMS} terms")
        return Term(token.text, operator.text, value.text, token.position)


def _tokens(text: str) -> list[_Token]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        matched = _TOKEN.match(text, at)
        if matched is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            opened = text[start] == '"'
            reason = "the quotation that is opened here is not closed" if opened else "this cannot be read"
            raise FilterInvalid(text, start, reason)
        kind = str(matched.lastgroup)
        value = matched[kind]
        if kind == "quoted":
            value = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        found.append(_Token(kind, value, matched.end() - len(matched[0].lstrip())))
        at = matched.end()
    return [*found, _Token("end", "", end)]

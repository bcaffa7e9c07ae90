"""A page, read as a browser would, and what holds for every page."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset(("meta", "link", "img", "input", "br", "hr", "line", "polyline", "rect", "circle", "path"))


@dataclass
class Read(HTMLParser):
    """tags: with their attributes; text: all of it; left: tags that were not closed."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    text: str = ""
    labelled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        if "label" in self.open:
            held["in-label"] = "yes"
        self.tags.append((tag, held))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, *wanted: str) -> list[dict[str, str]]:
        return [held for tag, held in self.tags if tag in wanted]


def read(body: bytes) -> Read:
    """Raises AssertionError where a tag is not closed by its own."""
    found = Read()
    found.feed(body.decode())
    found.close()
    assert found.open == []
    return found


def faults(found: Read) -> list[str]:
    """What a page must not have: scripts of its own, things from elsewhere, fields without names."""
    told = []
    for tag, held in found.tags:
        told += [f"{tag} has {name}" for name in held if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action", "formaction"):
            if held.get(name, "").partition(":")[0] in ("http", "https", "javascript", "data"):
                told.append(f"{tag} leads to {held[name]}")
    scripts = [held.get("src", "") for held in found.of("script")]
    told += ["a script of its own" for src in scripts if not src.startswith("/static/")]
    told += ["a style of its own" for _ in found.of("style")]
    told += ["a picture without words" for held in found.of("img") if not held.get("alt")]
    labels = {held["for"] for held in found.of("label") if "for" in held}
    for held in found.of("input", "select", "textarea"):
        named = held.get("id") in labels or "in-label" in held or held.get("aria-label")
        if held.get("type") == "hidden" or named:
            continue
        told.append(f"a field without a label: {held}")
    ids = [held["id"] for _, held in found.tags if "id" in held]
    told += [f"twice the id {each}" for each in {each for each in ids if ids.count(each) > 1}]
    told += [f"a label of nothing: {each}" for each in labels - set(ids)]
    return told + _unsaid(found)


def _unsaid(found: Read) -> list[str]:
    """What somebody who does not see the page would miss: landmarks, headings, names of parts."""
    told = []
    if found.of("html"):
        told += ["no language" for held in found.of("html") if not held.get("lang")]
        told += [f"{len(found.of(tag))} of {tag}" for tag in ("main", "h1") if len(found.of(tag)) != 1]
        told += [] if found.of("title") else ["no title"]
        first = next(held for tag, held in found.tags if tag in ("a", "button", "input"))
        if found.of("nav") and first.get("href") != "#main":
            told.append("no way past the navigation")
    ids = {held["id"] for _, held in found.tags if "id" in held}
    for held in found.of("section", "nav"):
        if not held.get("aria-label") and held.get("aria-labelledby") not in ids:
            told.append(f"a part without a name: {held}")
    for held in found.of("svg"):
        if held.get("aria-hidden") != "true" and not (held.get("role") == "img" and held.get("aria-label")):
            told.append(f"a drawing without words: {held}")
    charts = [held for held in found.of("svg") if held.get("class") == "chart"]
    if len(found.of("table")) < len(charts):
        told.append("a chart without a table")
    told += [f"a head of nothing: {held}" for held in found.of("th") if not held.get("scope")]
    return told

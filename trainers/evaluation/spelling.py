"""How people say who is to look at images; extractors.py says what each is. Without torch."""

from __future__ import annotations

from dataclasses import dataclass

from affinery.errors import UnknownName

RECOGNISER = "recogniser"
FORMS = (RECOGNISER, "inception=WEIGHTS.pth", "clip=FOLDER", "timm:MODEL=CHECKPOINT")


@dataclass(frozen=True)
class Spelt:
    """family: before the colon; model: timm's name of it, else empty; where: the path, for all but one."""

    family: str
    model: str = ""
    where: str = ""


def spelt(asked: str) -> Spelt:
    """What was typed, in its parts. Raises UnknownName, which says the forms there are.

    A second colon is refused: timm would take what is before it for a place on the network.
    """
    kind, equals, where = asked.partition("=")
    family, _, model = kind.partition(":")
    if asked == RECOGNISER:
        return Spelt(RECOGNISER)
    known = bool(equals) and family in ("inception", "clip", "timm")
    if not known or (family == "timm") != bool(model) or ":" in model:
        raise UnknownName("extractor", asked, FORMS)
    return Spelt(family, model, where)

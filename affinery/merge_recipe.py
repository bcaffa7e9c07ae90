"""What a merged composition says of itself: which members are summed under which name, with which weights.

    {"merges": [{"name": "ink", "of": [{"member": 0, "weight": 0.6, "layers": [["qkv", 0.2]]}, …]}]}

Members are named by their place in the composition, so that renaming a task changes no recipe. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST = 1e6


@dataclass(frozen=True)
class Weight:
    """How much of a task goes into a sum.

    layers: (role or pattern of names, weight) where layers have one of their own; the last that fits counts.
    """

    whole: float
    layers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for value in (self.whole, *(own for _, own in self.layers)):
            if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
                raise ValueError(f"the weight {value!r:.40} is not a number from -{LARGEST:g} to {LARGEST:g}")
        if not all(isinstance(target, str) and target for target, _ in self.layers):
            raise ValueError("a group of layers has no name")

    def to_json(self) -> dict[str, Any]:
        layers = [[target, own] for target, own in self.layers]
        return {"weight": self.whole} | ({"layers": layers} if layers else {})

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Weight:
        return cls(raw["weight"], tuple((target, own) for target, own in raw.get("layers", ())))


@dataclass(frozen=True)
class Merge:
    """One sum. weights: by the member's place in the composition."""

    name: str
    weights: tuple[tuple[int, Weight], ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "of": [{"member": at, **weight.to_json()} for at, weight in self.weights]}


def recipe_of(merges: Sequence[Merge]) -> dict[str, Any]:
    """The recipe of a composition with these sums."""
    return {"merges": [merge.to_json() for merge in merges]}


def merges_of(recipe: Mapping[str, Any], members: int) -> tuple[Merge, ...]:
    """The sums of a recipe of so many members. Raises ValueError where it is none."""
    try:
        found = tuple(
            Merge(raw["name"], tuple((part["member"], Weight.from_json(part)) for part in raw["of"]))
            for raw in recipe["merges"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lists no sums of members ({error!r})") from error
    names = [merge.name for merge in found]
    if not names or len(set(names)) < len(names) or not all(isinstance(n, str) and n for n in names):
        raise ValueError("its sums have no names of their own")
    for merge in found:
        places = [at for at, _ in merge.weights]
        known = all(type(at) is int and 0 <= at < members for at in places)
        if not places or not known or len(set(places)) < len(places):
            raise ValueError(f"{merge.name!r} is no sum of members of this composition")
    return found


def in_words(parts: Iterable[Mapping[str, Any]], members: Sequence[str]) -> str:
    """What a recipe's sum is of: 0.6 · digits@1 (qkv: 0.2) + …"""
    shares = []
    for part in parts:
        own = ", ".join(f"{target}: {weight:g}" for target, weight in part.get("layers", ()))
        shares.append(f"{part['weight']:g} · {members[part['member']]}" + (f" ({own})" if own else ""))
    return " + ".join(shares)

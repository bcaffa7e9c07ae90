"""Metrics of adapters as people ask for them: by a name, against a bound.

`recognition` is the number of that name; where the metrics hold several numbers under it, the first of
`recognition.share`, `recognition.mean` and `recognition.value`. Any of them can be named in full. Where an
evaluation measured it, `recognition@3f9a2c` says under which protocol (registry/evaluations.py).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from registry.errors import RequirementInvalid

HEADLINES = ("share", "mean", "value")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_REQUIREMENT = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|>|<|=)\s*(\S+)\s*")


def spellings(name: str) -> tuple[str, ...]:
    """The recorded names that a metric's name may stand for, the one that is meant first."""
    return (name, *(f"{name}.{part}" for part in HEADLINES))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an adapter's metrics by name, two levels deep, as the registry searches them."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        inner = value if isinstance(value, dict) else {}
        for key, number in {name: value, **{f"{name}.{part}": each for part, each in inner.items()}}.items():
            if (figure := as_figure(number)) is not None:
                found[key] = figure
    return found


def as_figure(value: object) -> float | None:
    """A recorded value as a number; None where it is none, or larger than a float can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def find(metrics: Mapping[str, Any], name: str) -> float | None:
    """What the metrics say by this name; None where they do not."""
    known = numbers(metrics)
    return next((known[each] for each in spellings(name) if each in known), None)


@dataclass(frozen=True, slots=True)
class Recognition:
    """Which share of how many samples is taken for the class asked for; by_class: the same of each.

    real_accuracy, real_images: how the same classifier does on real images, and on how many. Metrics of
    adapters that were learnt elsewhere are whatever was sent: None is what does not say that.
    """

    share: float | None
    samples: int | None
    by_class: tuple[float, ...] | None
    real_accuracy: float | None
    real_images: int | None


def recognition(metrics: Mapping[str, Any]) -> Recognition:
    """What an adapter's metrics, or an evaluation's results, say of it. It never fails."""
    told = metrics.get("recognition")
    parts = told if isinstance(told, dict) else {}
    return Recognition(
        _share(find(metrics, "recognition")),
        _count(parts.get("samples")),
        _shares(parts.get("by_class")),
        _share(parts.get("real_accuracy")),
        _count(parts.get("real_images")),
    )


def _share(value: object) -> float | None:
    figure = as_figure(value)
    return figure if figure is not None and 0 <= figure <= 1 else None


def _shares(value: object) -> tuple[float, ...] | None:
    """None too where one of them is none: the others would be told of the wrong classes."""
    shares = [_share(each) for each in value] if isinstance(value, list | tuple) else []
    return tuple(each for each in shares if each is not None) if shares and None not in shares else None


def _count(value: object) -> int | None:
    figure = as_figure(value)
    return int(figure) if figure is not None and figure >= 0 and figure.is_integer() else None


@dataclass(frozen=True, slots=True)
class Requirement:
    """A metric's name, a comparison and a bound: recognition>=0.8, kid@3f9a2c<0.02."""

    metric: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{repr(self.bound).removesuffix('.0')}"

    def holds(self, number: float) -> bool:
        return COMPARISONS[self.comparison](number, self.bound)


def requirement(text: str) -> Requirement:
    """Read `metric>=number`; RequirementInvalid where that cannot be done."""
    matched = _REQUIREMENT.fullmatch(text)
    bound = number(matched[3]) if matched else None
    if matched is None or bound is None:
        raise RequirementInvalid(text)
    return Requirement(matched[1], matched[2], bound)


def number(text: str) -> float | None:
    """A finite number as it is written everywhere; None for what only Python reads as one: nan, 1_000, １."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return value if math.isfinite(value) else None

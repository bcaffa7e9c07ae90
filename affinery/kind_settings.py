"""Settings of kinds and trainings before there is a model: what is advised, who takes what, what fits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from affinery.adapters import kind as kind_named
from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, BackboneSpec, on_meta
from affinery.errors import ConfigInvalid, near

RANKS_WITHOUT_TOKENS = {"affiner": 32}
"""DiffScaler's ranks for U-Nets; those for transformers are the kinds' own defaults."""


def has_tokens(arch: str) -> bool:
    """Whether what an architecture denoises is cut into tokens, of which masked training drops some."""
    return architecture(arch).tokens is not Backbone.tokens


def advised_settings(kind: str, arch: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A kind's settings on a backbone where nobody gives others. defaults: those in the backbone's spec."""
    own: dict[str, Any] = defaults.get("kinds", {}).get(kind, {})
    if kind in RANKS_WITHOUT_TOKENS and not has_tokens(arch):
        return {"rank": RANKS_WITHOUT_TOKENS[kind]} | own
    return dict(own)


def advised_recipe(arch: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training on a backbone where nobody gives others: none is masked that has no tokens."""
    own: dict[str, Any] = defaults.get("recipe", {})
    return dict(own) if has_tokens(arch) else dict(own) | {"mask_ratio": 0.0}


def check_mask_ratio(arch: str, mask_ratio: float) -> None:
    """Raises ConfigInvalid where tokens are to be dropped and there are none."""
    if mask_ratio > 0 and not has_tokens(arch):
        raise ConfigInvalid(
            "mask_ratio", f"{arch} has no tokens to drop. Leave it out; such a backbone trains with 0."
        )


def settings_of(kind: str) -> list[str]:
    """The names of a kind's settings. Raises UnknownName."""
    return list(kind_named(kind).config({}).to_dict())


def about(kind: str) -> str:
    """What a kind is, in a line: the first of its file's docstring. Raises UnknownName."""
    return (sys.modules[type(kind_named(kind)).__module__].__doc__ or "").partition("\n")[0]


def shared_out(kinds: Sequence[str], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """To each kind those values that it has settings for. Raises ConfigInvalid where none has one."""
    known = [settings_of(kind) for kind in kinds]
    everything = sorted({name for names in known for name in names})
    for name in values:
        if name not in everything:
            what = kinds[0] if len(set(kinds)) == 1 else "kinds"
            has = "it has" if len(set(kinds)) == 1 else "they have"
            listing = ", ".join(everything) or "none"
            raise ConfigInvalid(
                what, f"there is no setting {name!r}; {has}: {listing}.{near(name, everything)}"
            )
    return [{name: value for name, value in values.items() if name in names} for names in known]


def check_fits(spec: BackboneSpec, wanted: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Whether tasks of these kinds and settings can be trained on a backbone, found out without its weights.

    Raises UnknownName or ConfigInvalid.
    """
    sites = on_meta(spec, architecture(spec.arch)).sites()
    for name, values in wanted:
        kind = kind_named(name)
        config = kind.config(values)
        for site in kind.choose(sites, config):
            kind.parts(sites[site], config)

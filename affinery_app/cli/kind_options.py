"""The options that say which adapter kinds are meant, and with what settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

RankOption = Annotated[
    int | None, typer.Option(help="The width of the low-rank branch or bottleneck, where a kind has one.")
]
AlphaOption = Annotated[float | None, typer.Option(help="LoRA's branch is scaled by alpha / rank.")]
TargetsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="The layers to adapt: roles or name patterns, as in qkv,proj or down_blocks.*; repeat for more.",
        show_default="those that the method names",
    ),
]
PartsOption = Annotated[
    str | None, typer.Option(help="The Affiner's parts: a, b, low-rank.", show_default="a,b,low-rank")
]


def kind_values(
    rank: int | None, alpha: float | None, targets: Sequence[str] | None, parts: str | None
) -> dict[str, Any]:
    """What was given of the options above, as settings. Raises ConfigInvalid for a list of nothing."""
    from affinery.errors import ConfigInvalid

    values = {
        "rank": rank,
        "alpha": alpha,
        "targets": None if targets is None else [one for some in targets for one in listed(some)],
        "parts": None if parts is None else listed(parts),
    }
    for name in ("targets", "parts"):
        if values[name] == []:
            raise ConfigInvalid(f"--{name}", "it names nothing; leave it out to take those of the method.")
    return {name: value for name, value in values.items() if value is not None}


def listed(text: str) -> list[str]:
    """The entries of a list with commas."""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def parsed(settings: Iterable[str]) -> dict[str, Any]:
    """Settings given as NAME=VALUE, a value being JSON or, failing that, text. Raises ConfigInvalid."""
    from affinery.errors import ConfigInvalid

    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip() or not text.strip():
            raise ConfigInvalid("--set", f"{setting!r} is not of the form NAME=VALUE.")
        try:
            values[name.strip()] = json.loads(text)
        except ValueError:
            values[name.strip()] = text.strip()
    return values


def sorted_out(
    kinds: Sequence[str], settings: Mapping[str, Any], others: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of kinds, and those that are none of theirs. others: the names of those that there are.

    Raises ConfigInvalid for a setting that is neither.
    """
    from affinery.errors import ConfigInvalid, near
    from affinery.kind_settings import settings_of

    of_kinds = sorted({name for kind in kinds for name in settings_of(kind)})
    known = [*of_kinds, *others]
    for name in settings:
        if name not in known:
            raise ConfigInvalid(
                "--set",
                f"there is no setting {name!r}.{near(name, known)} Of the training: {', '.join(others)}. "
                f"Of {' and '.join(dict.fromkeys(kinds))}: {', '.join(of_kinds) or 'none'}.",
            )
    own = {name: value for name, value in settings.items() if name in of_kinds}
    return own, {name: value for name, value in settings.items() if name not in of_kinds}

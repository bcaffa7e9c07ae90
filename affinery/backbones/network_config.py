"""Configs of networks as files of others hold them: read with care, since they decide what gets built."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from affinery.errors import ConfigInvalid

NUMBER_LIMIT, LENGTH_LIMIT, COUNT_LIMIT = 131_072, 8, 128
COUNTS = {"layers_per_block": 8, "transformer_layers_per_block": 16, "num_hidden_layers": COUNT_LIMIT}


def check_config(what: str, config: Mapping[str, Any], known: Collection[str]) -> None:
    """Whether every setting is known and of a size that can be built. Raises ConfigInvalid."""
    if odd := sorted(config.keys() - set(known)):
        raise ConfigInvalid(what, f"{odd[0]!r} is not one of its settings: {', '.join(sorted(known))}.")
    for name, value in config.items():
        most = COUNTS.get(name, NUMBER_LIMIT)
        for number in _numbers(what, name, value):
            if not -most <= number <= most:
                raise ConfigInvalid(what, f"{name} = {value!r} is more than {most:,}.")


def _numbers(what: str, name: str, value: object) -> Iterable[float]:
    """All numbers in a setting; lists are short, and their lists too."""
    if isinstance(value, list | tuple):
        if len(value) > LENGTH_LIMIT:
            raise ConfigInvalid(what, f"{name} has {len(value)} entries, more than {LENGTH_LIMIT}.")
        for one in value:
            yield from _numbers(what, name, one)
    elif isinstance(value, int | float):
        yield value
    elif value is not None and not isinstance(value, str):
        raise ConfigInvalid(what, f"{name} = {value!r} is neither a number, a word nor a list of them.")


def only(what: str, config: Mapping[str, Any], choices: Mapping[str, tuple[object, ...]]) -> None:
    """Whether settings with few supported values have one of them. Raises ConfigInvalid."""
    for name, allowed in choices.items():
        for value in _entries(config.get(name, allowed[0])):
            if not any(value == choice and type(value) is type(choice) for choice in allowed):
                listing = ", ".join(str(choice) for choice in allowed)
                raise ConfigInvalid(what, f"{name} = {value!r} is not supported; supported: {listing}.")


def _entries(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else [value]

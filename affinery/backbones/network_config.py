"""Configs of networks as files of others hold them: read with care, since they decide what gets built."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from affinery.errors import ConfigInvalid

NUMBER_LIMIT, LENGTH_LIMIT = 131_072, 8
COUNT_LIMITS = {"layers_per_block": 8, "transformer_layers_per_block": 16, "num_hidden_layers": 128}
# Settings that may be more than their defaults tell: none, zero, or a list with an entry a stage.
MAY_BE_NONE = ("attention_head_dim", "mid_block_type", "norm_num_groups")
MAY_BE_ZERO = ("downsample_padding",)
MAY_BE_LISTS = (*COUNT_LIMITS, "attention_head_dim", "only_cross_attention", "sample_size")


def arguments(network: type, names: Iterable[str] | None = None) -> dict[str, Any]:
    """A network's arguments, or those of these names, with their defaults."""
    parameters = inspect.signature(network.__init__).parameters  # type: ignore[misc]
    return {name: parameters[name].default for name in names or parameters if name != "self"}


def check_config(what: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Whether every setting is known, of the kind of its default, and small enough to be built.

    Raises ConfigInvalid.
    """
    if odd := sorted(config.keys() - defaults.keys()):
        raise ConfigInvalid(what, f"{odd[0]!r} is not one of its settings: {', '.join(sorted(defaults))}.")
    for name, value in config.items():
        if not (value is None and name in MAY_BE_NONE) and not _fits_setting(name, value, defaults[name]):
            raise ConfigInvalid(
                what, f"{name} = {repr(value)[:100]} cannot be; {defaults[name]!r}, for one, can."
            )


def _fits_setting(name: str, value: object, default: object) -> bool:
    most = COUNT_LIMITS.get(name, NUMBER_LIMIT)
    if name.endswith("_factor") and isinstance(default, int):
        default = float(default)
    if name in MAY_BE_ZERO:
        default = 0
    whole_list = isinstance(default, list | tuple)
    if isinstance(default, list | tuple):
        default = default[0]
    if isinstance(value, list | tuple):
        entries = (whole_list or name in MAY_BE_LISTS) and 0 < len(value) <= LENGTH_LIMIT
        return entries and all(_fits(one, default, most) for one in value)
    return not whole_list and _fits(value, default, most)


def _fits(value: object, default: object, most: int) -> bool:
    """Whether one value could stand in the place of a default."""
    if default is None:
        return value is None or type(value) is bool or _fits(value, 1, most)
    if isinstance(default, bool | str):
        return type(value) is type(default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if isinstance(default, int):
        return isinstance(value, int) and min(default, 1) <= value <= most
    return 0 <= value <= most and (value > 0 or default == 0)


def only(what: str, config: Mapping[str, Any], choices: Mapping[str, tuple[object, ...]]) -> None:
    """Whether settings with few supported values have one of them. Raises ConfigInvalid."""
    for name, allowed in choices.items():
        value = config.get(name, allowed[0])
        for one in value if isinstance(value, list | tuple) else [value]:
            if one not in allowed:
                listing = ", ".join(str(choice) for choice in allowed)
                raise ConfigInvalid(what, f"{name} = {one!r} is not supported; supported: {listing}.")

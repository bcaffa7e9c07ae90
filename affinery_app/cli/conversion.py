"""What is typed becomes a value without pydantic where a look is enough.

Typer converts with pydantic, whose import takes a sixth of a read's time. Texts, paths, numbers and named
choices need none of it. All else, and all that is wrong, is Typer's still, with its messages.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from typer._click import Context, Parameter
from typer._coercion import TypeDescriptor, build_runtime_param
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

DIGITS = 18
"""No number that is meant has more."""


class Command(TyperCommand):
    """Typer's, whose parameters convert so."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """As Typer's own."""
        return _converting(super().get_params(ctx))


class Group(TyperGroup):
    """Typer's, whose parameters convert so."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """As Typer's own."""
        return _converting(super().get_params(ctx))


def _converting(params: list[Parameter]) -> list[Parameter]:
    for each in params:
        if isinstance(each, TyperOption | TyperArgument):
            each._runtime_param = cast("Any", Conversion(each.type_descriptor))
    return params


class Conversion:
    """Of one parameter's values."""

    def __init__(self, meant: TypeDescriptor) -> None:
        self._meant = meant

    def coerce(self, value: Any, param: TyperOption | TyperArgument, ctx: Context) -> Any:
        """→ the value in its type, as Typer has it. Raises BadParameter."""
        several = (isinstance(param, TyperOption) and param.multiple) or param.nargs == -1
        if value is None:
            return () if several else None
        found = self._each(value) if several else self._one(value, self._meant.annotation)
        if found is None:
            return build_runtime_param(self._meant).coerce(value, param=param, ctx=ctx)
        return found

    def _each(self, values: Any) -> list[Any] | None:
        kind: Any = self._meant.annotation
        if get_origin(kind) is not list or not isinstance(values, tuple | list):
            return None
        found = [self._one(each, get_args(kind)[0]) for each in values]
        return None if any(each is None for each in found) else found

    def _one(self, value: Any, kind: Any) -> Any:
        """→ what the value is; None where a look is not enough"""
        if self._meant.parameter_info.parser is not None:
            return None
        if self._meant.choices is not None:
            return next((each for each in self._meant.choices if value in (each, _named(each))), None)
        if kind is str:
            return value if isinstance(value, str) else None
        if kind in (int, float):
            return self._number(value, kind)
        return self._path(value) if kind is Path else None

    def _number(self, value: Any, kind: type) -> float | None:
        number: Any = None
        if type(value) is kind:  # as a default is
            number = value
        elif kind is int and isinstance(value, str) and value.isascii() and value.isdigit():
            number = int(value) if len(value) <= DIGITS else None
        low, high = self._meant.parameter_info.min, self._meant.parameter_info.max
        out = number is None or (low is not None and number < low) or (high is not None and number > high)
        return None if out else cast("float", number)

    def _path(self, value: str | Path) -> Path | None:
        asked, path = self._meant.parameter_info, Path(value)
        if asked.exists or asked.writable or asked.resolve_path or asked.allow_dash or asked.path_type:
            return None
        readable = not asked.readable or not path.exists() or os.access(path, os.R_OK)
        return path if asked.file_okay and asked.dir_okay and readable else None


def _named(choice: Any) -> str:
    return str(choice.value if isinstance(choice, Enum) else choice)

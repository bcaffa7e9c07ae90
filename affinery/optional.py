"""Libraries that a plain installation does without."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from affinery.errors import ConfigInvalid


def needed(module: str, what: str) -> Any:
    """A module of the extra `export`. what: what needs it. Raises ConfigInvalid where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0].replace("_", "-")
        raise ConfigInvalid(what, f"it needs {library}: pip install 'affinery[export]'.") from error

"""What `affinery task add` is told of conditions: from options to a record a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

NONE = "none"

ConditionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="A spatial condition (canny, hed, depth, segmentation, or none), of all tasks or one a task.",
    ),
]
LowOption = Annotated[
    int | None, typer.Option("--canny-low", help="Canny's lower threshold.", show_default="100")
]
HighOption = Annotated[
    int | None, typer.Option("--canny-high", help="Canny's upper threshold.", show_default="200")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--condition-model",
        show_default="the dataset's maps",
        help="A transformers folder that draws depth or segmentation.",
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option("--image-size", help="The images' side in pixels.", show_default="the backbone's"),
]


def conditions_of(
    names: Sequence[str], low: int | None, high: int | None, model: Path | None
) -> list[dict[str, Any] | None]:
    """Each condition's record. Thresholds are canny's, the model is the others'. Raises ConfigInvalid …"""
    from affinery.errors import ConfigInvalid
    from trainers.conditions import condition_record

    found: list[dict[str, Any] | None] = []
    for name in names:
        if name == NONE:
            found.append(None)
        elif name == "canny":
            found.append(condition_record(name, low, high))
        else:
            found.append(condition_record(name, model=model))
    if (low is not None or high is not None) and "canny" not in names:
        raise ConfigInvalid("--canny-low, --canny-high", "no task is told edges.")
    if model is not None and not set(names) - {"canny", NONE}:
        raise ConfigInvalid("--condition-model", "no task is told what a model draws.")
    return found

"""The options that say what conditions tasks are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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

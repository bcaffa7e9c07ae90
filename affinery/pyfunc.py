"""What MLflow loads of an exported model: a bundle that draws what each row of a table asks for.

MLflow knows this module by name (the model's `loader_module`), and calls `_load_pyfunc`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery.errors import ConfigInvalid
from affinery.pictures import png_of

if TYPE_CHECKING:
    from affinery.composed import ComposedModel

COLUMNS = {"task": "string", "label": "string", "seed": "long", "steps": "long", "guidance": "double"}
REQUIRED = ("task", "label")
"""Of the columns; the others have defaults: seed 0, and the backbone's own steps and guidance."""
ECHOED, IMAGE = ("task", "label", "seed"), "image"
ROWS = 1024


class Drawing:
    """A model as MLflow sees it."""

    def __init__(self, model: ComposedModel) -> None:
        self.model = model

    def predict(self, model_input: Any) -> list[dict[str, Any]]:
        """A row of COLUMNS → the same row with its image, a PNG in base64. Rows of all tasks share batches.

        model_input: a pandas DataFrame, or a list of mappings. Raises ConfigInvalid and UnknownName.
        """
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else list(model_input)
        if len(rows) > ROWS:
            raise ConfigInvalid("rows", f"{len(rows):,} are too many at once; send at most {ROWS:,}.")
        asked = [_asked(row) for row in rows]
        images: dict[int, bytes] = {}
        for settings in dict.fromkeys((row["steps"], row["guidance"]) for row in asked):
            chosen = [i for i, row in enumerate(asked) if (row["steps"], row["guidance"]) == settings]
            images |= dict(zip(chosen, self._drawn([asked[i] for i in chosen]), strict=True))
        return [
            {name: row[name] for name in ECHOED} | {IMAGE: base64.b64encode(images[i]).decode()}
            for i, row in enumerate(asked)
        ]

    def _drawn(self, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
        from affinery.diffusion.sampling import Draw, default_settings, sample

        settings = default_settings(self.model, rows[0]["steps"], rows[0]["guidance"])
        draws = [
            Draw(row["task"], self.model.task(row["task"]).row(row["label"]), row["seed"]) for row in rows
        ]
        return [png_of(image) for image in sample(self.model, draws, settings)]


def _asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row in its own types; what a table leaves empty (None, NaN) is not asked for."""
    given = {
        str(name): value
        for name, value in row.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    }
    if unknown := sorted(given.keys() - COLUMNS.keys()):
        raise ConfigInvalid(unknown[0], f"is no column of this model; it has {', '.join(COLUMNS)}.")
    if missing := [name for name in REQUIRED if name not in given]:
        raise ConfigInvalid(missing[0], "is missing in a row.")
    try:
        return {
            "task": str(given["task"]),
            "label": str(given["label"]),
            "seed": int(given.get("seed", 0)),
            "steps": None if "steps" not in given else int(given["steps"]),
            "guidance": None if "guidance" not in given else float(given["guidance"]),
        }
    except (TypeError, ValueError) as error:
        raise ConfigInvalid("a row", f"{error}.") from error


def _load_pyfunc(data_path: str) -> Drawing:
    """The bundle at this path, every file of it checked. Raises BundleInvalid."""
    from affinery.bundle import load_bundle

    return Drawing(load_bundle(Path(data_path)))

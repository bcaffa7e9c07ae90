"""A composition as an MLflow model: its bundle, with a signature and tags that say whence it came.

`mlflow models serve -m FOLDER --env-manager local` serves it; `mlflow.pyfunc.load_model(FOLDER)` loads it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from affinery.errors import ConfigInvalid
from affinery.formats.contract import Format, Shipment, distance
from affinery.pyfunc import COLUMNS, ECHOED, IMAGE, REQUIRED, Drawing

if TYPE_CHECKING:
    from affinery.composed import ComposedModel

NAME = "mlflow"
LOADER = "affinery.pyfunc"
NEEDED = ("affinery", "torch", "safetensors", "timm", "diffusers", "pillow", "numpy")
PROBED_TASKS, PROBED_STEPS = 4, 2


class MlflowModel(Format):
    """An export format. write_bundle: writes the composition's bundle into a folder that is not there."""

    def __init__(self, write_bundle: Callable[[Path], object]) -> None:
        self.write_bundle = write_bundle

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        model = shipment.model
        rows = [_row(model, task, 0) for task in model.slots]  # refuses a task that a table cannot ask
        with TemporaryDirectory(prefix=".affinery-", dir=folder.parent) as scratch:
            self.write_bundle(Path(scratch) / "bundle")
            save(Path(scratch) / "bundle", folder, dict(shipment.facts) | {"affinery.example": rows[0]})
        return (f"served by: mlflow models serve --env-manager local -m FOLDER; a row is {rows[0]}",)

    def compare(self, shipment: Shipment, folder: Path) -> float:
        """Draws rows of several tasks, loaded as MLflow does; pixels are compared as the PNGs hold them."""
        import mlflow.pyfunc
        import numpy as np
        import pandas
        import torch
        from PIL import Image

        model = shipment.model
        tasks = list(model.slots)[:PROBED_TASKS]
        rows = [_row(model, task, seed) | {"steps": PROBED_STEPS} for seed, task in enumerate(tasks)]
        found = mlflow.pyfunc.load_model(str(folder)).predict(pandas.DataFrame(rows))
        theirs = [base64.b64decode(row[IMAGE]) for row in found]
        ours = [base64.b64decode(row[IMAGE]) for row in Drawing(model).predict(rows)]
        pixels = [
            [torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).double() for png in side]
            for side in (ours, theirs)
        ]
        return max(distance(one, other) for one, other in zip(*pixels, strict=True))


def save(bundle: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the model of a bundle, into a folder that is empty or not there. Nothing is pickled."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    asked = [ColSpec(DataType[kind], name, required=name in REQUIRED) for name, kind in COLUMNS.items()]
    told = [ColSpec(DataType[COLUMNS[name]], name) for name in ECHOED] + [ColSpec(DataType.string, IMAGE)]
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=LOADER,
        data_path=str(bundle),
        signature=ModelSignature(inputs=Schema(asked), outputs=Schema(told)),
        pip_requirements=[f"{name}=={version(name)}" for name in NEEDED],
        metadata=dict(facts),
    )


def _row(model: ComposedModel, task: str, seed: int) -> dict[str, Any]:
    """What is asked of one task. Raises ConfigInvalid where the row of a table cannot ask it."""
    meta = model.task(task).meta
    if meta.condition is not None:
        raise ConfigInvalid("--format", f"mlflow's tables hold no pictures, and {task} is told one.")
    return {"task": task, "label": meta.class_names[0], "seed": seed}

"""A training's whole state on disk, as safetensors and JSON.

Whoever resumes from it ends where an unbroken run ends, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from affinery import tensor_files
from trainers.errors import CheckpointUnreadable
from trainers.loop import CoTraining

TENSORS, RECORD = "state.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(training: CoTraining, folder: Path) -> None:
    """Writes what trains, its averages, the optimizer's moments, every random stream, and the step."""
    tensors: dict[str, Tensor] = {}
    trained = training.trained()
    for name, parameter in trained.items():
        tensors[f"trained.{name}"] = parameter.detach()
        tensors[f"average.{name}"] = training.average[name]
        state = training.optimizer.state.get(parameter, {})
        for moment in MOMENTS:
            if moment in state:
                tensors[f"{moment}.{name}"] = state[moment]
    for i, stream in enumerate(training.streams):
        tensors[f"stream.{i}"] = stream.generator.get_state()
    body = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    tensor_files.write_whole(folder / TENSORS, body)
    record = {
        "schema": 1,
        "step": training.step,
        "tasks": _tasks(training),
        "recipe": training.recipe.to_dict(),
        "digest": tensor_files.sha256_file(folder / TENSORS),
    }
    tensor_files.write_whole(folder / RECORD, json.dumps(record, sort_keys=True).encode())


def restore_checkpoint(training: CoTraining, folder: Path) -> None:
    """Puts a saved state into a training of the same tasks and recipe.

    Raises CheckpointUnreadable; then nothing has changed.
    """
    try:
        record = json.loads((folder / RECORD).read_bytes())
        step = int(record["step"])
        if record["digest"] != tensor_files.sha256_file(folder / TENSORS):
            raise CheckpointUnreadable(str(folder), "its tensors are not those that were saved")
        if record["tasks"] != _tasks(training) or record["recipe"] != training.recipe.to_dict():
            raise CheckpointUnreadable(str(folder), "it belongs to another training")
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointUnreadable(str(folder), str(error)) from error
    _check_shapes(training, tensors, folder)
    with torch.no_grad():
        for name, parameter in training.trained().items():
            parameter.copy_(tensors[f"trained.{name}"])
            training.average[name].copy_(tensors[f"average.{name}"])
            training.optimizer.state.pop(parameter, None)
            if f"exp_avg.{name}" in tensors:
                moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                training.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    for i, stream in enumerate(training.streams):
        stream.generator.set_state(tensors[f"stream.{i}"])
    training.step = step


def _tasks(training: CoTraining) -> list[Any]:
    return [json.loads(data.meta.to_json()) for data in training.tasks]


def _check_shapes(training: CoTraining, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Everything that `restore_checkpoint` takes is there, in its shape."""
    shapes = {f"stream.{i}": stream.generator.get_state().shape for i, stream in enumerate(training.streams)}
    for name, parameter in training.trained().items():
        parts = ["trained", "average", *(MOMENTS if f"exp_avg.{name}" in tensors else ())]
        shapes |= {f"{part}.{name}": parameter.shape for part in parts}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            raise CheckpointUnreadable(str(folder), f"its {name!r} is missing or has another shape")


def checkpoints_in(folder: Path) -> list[Path]:
    """Every checkpoint below a folder, the furthest first; unreadable ones are left out."""
    found = []
    for record in folder.rglob(RECORD):
        try:
            found.append((int(json.loads(record.read_bytes())["step"]), record.parent))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [path for _, path in sorted(found, key=lambda item: (-item[0], str(item[1])))]

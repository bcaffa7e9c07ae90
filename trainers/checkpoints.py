"""A training's whole state on disk, as safetensors and JSON.

Whoever resumes from it ends where an unbroken run ends, to the bit. Its record is written last; it has the
digest of every file and its own, so that a checkpoint is whole or it is none, however its folder was copied.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from affinery import tensor_files
from affinery.adapters.files import Adapter
from trainers.errors import CheckpointUnreadable
from trainers.learner import Standing
from trainers.loop import CoTraining

TENSORS, RECORD = "state.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
SCHEMA = 3
log = logging.getLogger(__name__)


def save_checkpoint(training: CoTraining, folder: Path) -> None:
    """Writes what trains, its averages, the optimizer's moments, every random stream, where tasks stand, and
    what the last pass measured of their layers.

    Each task's tensors are its own, however tasks lie beside each other in memory. What safetensors files
    lie in the folder already, the finished adapters, belong to the checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    for i, learner in enumerate(training.learners):
        for name, parameter in learner.tensors.items():
            tensors[f"trained.{i}.{name}"] = parameter.detach()
            tensors[f"average.{i}.{name}"] = learner.averages[name]
            state = training.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{i}.{name}": state[moment] for moment in MOMENTS if moment in state}
        tensors[f"stream.{i}"] = learner.stream.generator.get_state()
        for layer, bank in training.banks(learner).items():
            if bank.measured is not None:
                tensors[f"measured.{i}.{layer}"] = bank.measured.clone()  # tasks of one group share it
    for i, task in enumerate(training.finished):
        tensors |= {f"finished.{i}.{name}": t for name, t in training.finished[task].tensors.items()}
    body = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    tensor_files.write_whole(folder / TENSORS, body)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "step": training.step,
        "done": training.done,
        "tasks": _tasks(training),
        "learners": [[learner.name, learner.state()] for learner in training.learners],
        "finished": list(training.finished),
        "recipe": training.recipe.to_dict(),
        "files": {path.name: tensor_files.sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
    }
    body = json.dumps(record | {"digest": _digest(record)}, sort_keys=True).encode()
    tensor_files.write_whole(folder / RECORD, body)


def _digest(record: Mapping[str, Any]) -> str:
    """Of everything that a record says but this."""
    said = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; its files are not looked at. Raises CheckpointUnreadable."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if record["schema"] != SCHEMA:
            raise CheckpointUnreadable(str(folder), f"another version of Affinery wrote its {RECORD}")
        if record["digest"] != _digest(record):
            raise CheckpointUnreadable(str(folder), f"its {RECORD} is not the one that was saved")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointUnreadable(str(folder), f"its {RECORD} is torn ({error!r})") from error
    found: dict[str, Any] = record
    return found


def check_files(folder: Path, record: Mapping[str, Any]) -> None:
    """Reads every file of a checkpoint. Raises CheckpointUnreadable naming one that was not saved so."""
    for name, digest in record["files"].items():
        try:
            same = tensor_files.sha256_file(folder / name) == digest
        except OSError as error:
            reason = f"its {name} cannot be read ({error.strerror})"
            raise CheckpointUnreadable(str(folder), reason) from error
        if not same:
            raise CheckpointUnreadable(str(folder), f"its {name} is not the one that was saved")


def restore_checkpoint(training: CoTraining, folder: Path) -> None:
    """Puts a saved state into a training of the same tasks and recipe; tasks that had left leave.

    Raises CheckpointUnreadable; then nothing has changed.
    """
    record = read_record(folder)
    check_files(folder, record)
    try:
        step, finished = int(record["step"]), list(record["finished"])
        if record["tasks"] != _tasks(training) or record["recipe"] != training.recipe.to_dict():
            raise CheckpointUnreadable(str(folder), "it belongs to another training")
        if set(training.finished) - set(finished):
            raise CheckpointUnreadable(str(folder), "tasks train in it that are done by now")
        standings = {name: Standing(**values) for name, values in record["learners"]}
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointUnreadable(str(folder), str(error)) from error
    order = {name: i for i, name in enumerate(standings)}
    _check_shapes(training, order, tensors, folder)
    adapters = {name: _finished(training, i, name, tensors) for i, name in enumerate(finished)}
    training.finished = {name: adapters[name] for name in finished if name in training.finished}
    if leaving := {name: adapters[name] for name in finished if name not in training.finished}:
        training.dismiss(leaving)
    with torch.no_grad():
        for learner in training.learners:
            i = order[learner.name]
            learner.standing = standings[learner.name]
            for name, parameter in learner.tensors.items():
                parameter.copy_(tensors[f"trained.{i}.{name}"])
                learner.averages[name].copy_(tensors[f"average.{i}.{name}"])
                training.optimizer.state.pop(parameter, None)
                if f"exp_avg.{i}.{name}" in tensors:
                    moments = {m: tensors[f"{m}.{i}.{name}"].to(parameter.device) for m in MOMENTS}
                    taken = torch.tensor(float(learner.standing.taken), device=parameter.device)
                    training.optimizer.state[parameter] = {"step": taken, **moments}
            learner.stream.generator.set_state(tensors[f"stream.{i}"])
            for layer, bank in training.banks(learner).items():
                measured = tensors.get(f"measured.{i}.{layer}")
                bank.findings = bank.kind.recalled(None if measured is None else measured.to(training.device))
    training.step = step


def _tasks(training: CoTraining) -> list[Any]:
    return [json.loads(training.records[name].to_json()) for name in training.order]


def _finished(training: CoTraining, i: int, name: str, tensors: Mapping[str, Tensor]) -> Adapter:
    start = f"finished.{i}."
    own = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
    return Adapter(training.records[name], own)


def _check_shapes(
    training: CoTraining, order: Mapping[str, int], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """Everything that `restore_checkpoint` takes is there, in its shape."""
    shapes: dict[str, torch.Size] = {}
    there = {learner.name: learner for learner in training.learners}
    for task, i in order.items():
        if task not in there:
            raise CheckpointUnreadable(str(folder), f"{task!r} is not in this training")
        shapes[f"stream.{i}"] = there[task].stream.generator.get_state().shape
        for name, parameter in there[task].tensors.items():
            parts = ["trained", "average", *(MOMENTS if f"exp_avg.{i}.{name}" in tensors else ())]
            shapes |= {f"{part}.{i}.{name}": parameter.shape for part in parts}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            raise CheckpointUnreadable(str(folder), f"its {name!r} is missing or has another shape")


def _log(torn: CheckpointUnreadable) -> None:
    log.warning("%s", torn)


def checkpoints_in(folder: Path, on_torn: Callable[[CheckpointUnreadable], None] = _log) -> Iterator[Path]:
    """Every whole checkpoint below a folder, the furthest first.

    on_torn: told of each that is passed over. Files are read as the iterator comes to them.
    """
    found = []
    for path in sorted(folder.rglob(RECORD)):
        try:
            record = read_record(path.parent)
        except CheckpointUnreadable as torn:
            on_torn(torn)
        else:
            found.append((path.parent, record))
    for each, record in sorted(found, key=lambda item: (-item[1]["step"], str(item[0]))):
        try:
            check_files(each, record)
        except CheckpointUnreadable as torn:
            on_torn(torn)
        else:
            yield each

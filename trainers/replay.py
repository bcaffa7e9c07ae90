"""Golden images: what a task draws from pinned seeds when registered, and again after every later addition.

The batch, the seeds, the sampler and the number type are part of the record, so that equal means equal to
the bit. In another environment (another torch, another processor) rounding may differ: then a tolerance
holds, and the result says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from affinery import tensor_files
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.errors import ConfigInvalid, words_of
from trainers.data import as_bytes, as_unit
from trainers.errors import GoldenUnreadable

IMAGES, CONDITIONS = "images", "conditions"
RECORD_KEY = "affinery.golden"
THREADS_LIMIT = 1024
BATCH = 8
SEED = 20_240_415
SETTINGS = SamplerSettings(steps=10, guidance=2.0)
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Replay:
    """level: 'bit-exact', 'tolerance' or 'failed'; difference: the largest, on a scale from −1 to 1."""

    task: str
    level: str
    difference: float
    same_environment: bool


@dataclass(frozen=True)
class Golden:
    """What a golden batch was drawn with. rows: of the class table, one an image; seed: the first image's.

    prompts: the captions, one an image; None where there were none. What a task with a condition was told
    lies beside the images, (B, C, H, W) bytes.
    """

    task: str
    rows: tuple[int, ...]
    seed: int
    sampler: SamplerSettings
    backbone: str
    environment: str
    threads: int
    prompts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.task, self.backbone, self.environment)):
            raise ValueError("its task, backbone or environment is not text")
        if not all(type(n) is int for n in (self.seed, self.threads, self.sampler.steps, *self.rows)):
            raise ValueError("its rows, seed, steps or threads are not whole numbers")
        if not self.rows or not 1 <= self.threads <= THREADS_LIMIT:
            raise ValueError(f"it was drawn with {len(self.rows)} images on {self.threads} threads")
        prompts = self.prompts
        if prompts is not None and not (
            len(prompts) == len(self.rows) and all(isinstance(prompt, str) for prompt in prompts)
        ):
            raise ValueError("its prompts are not one caption an image")

    def to_json(self) -> str:
        """Prompts are left out where there were none."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(values, sort_keys=True, ensure_ascii=False)


def golden_bytes(
    model: ComposedModel, task: str, environment_digest: str, told: Sequence[Draw] = ()
) -> bytes:
    """Draws the golden batch of a task and packs it with all that is needed to draw it again.

    told: draws whose captions and conditions are told again, in turn; a task with a condition needs some.
    """
    slot = model.task(task)
    count = len(slot.meta.class_names)
    rows = tuple(slot.row(i % count) for i in range(BATCH))
    told = [told[i % len(told)] for i in range(BATCH)] if told else []
    prompts = tuple(draw.prompt for draw in told) if any(draw.prompt for draw in told) else None
    golden = Golden(
        task, rows, SEED, SETTINGS, model.fingerprint, environment_digest, torch.get_num_threads(), prompts
    )
    conditions = None
    if slot.stem is not None:
        pictures = [draw.condition for draw in told if draw.condition is not None]
        if not pictures:
            raise ConfigInvalid("condition", f"task {task!r} cannot be drawn without a picture of one.")
        conditions = as_bytes(torch.stack(pictures))
    tensors = {} if conditions is None else {CONDITIONS: conditions}
    drawn = _draw(model, golden, conditions)
    return save({IMAGES: drawn} | tensors, metadata={RECORD_KEY: golden.to_json()})


def read_golden(path: Path) -> Golden:
    """The record of a golden file. Raises GoldenUnreadable."""
    try:
        raw = tensor_files.read_json(tensor_files.read_header(path).metadata[RECORD_KEY])
        sampler = SamplerSettings(**raw.pop("sampler"))
        if raw.get("prompts") is not None:
            raw["prompts"] = tuple(raw["prompts"])
        return Golden(**{**raw, "rows": tuple(raw["rows"]), "sampler": sampler})
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ConfigInvalid) as error:
        raise GoldenUnreadable(str(path), f"{words_of(error)}.") from error


def replay(model: ComposedModel, path: Path, environment_digest: str, task: str | None = None) -> Replay:
    """Draws a golden batch again with this model, which may hold more tasks by now.

    task: what the model calls the task, where it is not the name under which the batch was drawn.
    Raises GoldenUnreadable and UnknownName.
    """
    golden = read_golden(path)
    if task is not None:
        golden = replace(golden, task=task)
    tensors = load(path.read_bytes())
    then, size = tensors.get(IMAGES), model.image_size(golden.task)
    if then is None or then.shape != (len(golden.rows), model.spec.channels, size, size):
        raise GoldenUnreadable(str(path), "its images are missing, or not of this backbone's size.")
    conditions, condition = tensors.get(CONDITIONS), model.task(golden.task).meta.condition
    channels = None if condition is None else condition["channels"]
    wanted = None if channels is None else (torch.uint8, (len(golden.rows), channels, size, size))
    if (None if conditions is None else (conditions.dtype, tuple(conditions.shape))) != wanted:
        raise GoldenUnreadable(str(path), "its conditions are missing, or not those of this task.")
    low, high = model.task(golden.task).meta.block
    if not all(low <= row < high for row in golden.rows):
        raise GoldenUnreadable(str(path), f"its rows are not those of task {golden.task!r}.")
    threads = torch.get_num_threads()
    torch.set_num_threads(golden.threads)
    try:
        now = _draw(model, golden, conditions)
    except ConfigInvalid as error:
        raise GoldenUnreadable(str(path), str(error)) from error
    finally:
        torch.set_num_threads(threads)
    same = golden.environment == environment_digest and golden.backbone == model.fingerprint
    difference = float((now - then).abs().max())
    if torch.equal(now, then):
        level = "bit-exact"
    else:
        level = "tolerance" if not same and difference <= TOLERANCE else "failed"
    return Replay(golden.task, level, difference, same)


def _draw(model: ComposedModel, golden: Golden, conditions: Tensor | None) -> Tensor:
    """conditions: (B, C, H, W) bytes."""
    draws = [
        Draw(
            golden.task,
            row,
            golden.seed + i,
            golden.prompts[i] if golden.prompts else "",
            None if conditions is None else as_unit(conditions[i]),
        )
        for i, row in enumerate(golden.rows)
    ]
    return sample(model, draws, golden.sampler)

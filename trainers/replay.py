"""Golden images: what a task draws from pinned seeds when registered, and again after every later addition.

The batch, the seeds, the sampler and the number type are part of the record, so that equal means equal to
the bit. In another environment (another torch, another processor) rounding may differ: then a tolerance
holds, and the result says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save

from affinery import tensor_files
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.errors import ConfigInvalid
from trainers.errors import GoldenUnreadable

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
    """What a golden batch was drawn with. rows: of the class table, one an image; seed: the first image's."""

    task: str
    rows: tuple[int, ...]
    seed: int
    sampler: SamplerSettings
    backbone: str
    environment: str
    threads: int

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.task, self.backbone, self.environment)):
            raise ValueError("its task, backbone or environment is not text")
        if not all(type(n) is int for n in (self.seed, self.threads, self.sampler.steps, *self.rows)):
            raise ValueError("its rows, seed, steps or threads are not whole numbers")
        if not self.rows or not 1 <= self.threads <= THREADS_LIMIT:
            raise ValueError(f"it was drawn with {len(self.rows)} images on {self.threads} threads")


def golden_bytes(model: ComposedModel, task: str, environment_digest: str) -> bytes:
    """Draws the golden batch of a task and packs it with all that is needed to draw it again."""
    slot = model.task(task)
    count = len(slot.meta.class_names)
    rows = tuple(slot.row(i % count) for i in range(BATCH))
    golden = Golden(
        task, rows, SEED, SETTINGS, model.fingerprint, environment_digest, torch.get_num_threads()
    )
    record = json.dumps(asdict(golden), sort_keys=True, ensure_ascii=False)
    return save({"images": _draw(model, golden)}, metadata={RECORD_KEY: record})


def read_golden(path: Path) -> Golden:
    """The record of a golden file. Raises GoldenUnreadable."""
    try:
        raw = tensor_files.read_json(tensor_files.read_header(path).metadata[RECORD_KEY])
        sampler = SamplerSettings(**raw.pop("sampler"))
        return Golden(**{**raw, "rows": tuple(raw["rows"]), "sampler": sampler})
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ConfigInvalid) as error:
        raise GoldenUnreadable(str(path), f"{error}.") from error


def replay(model: ComposedModel, path: Path, environment_digest: str) -> Replay:
    """Draws a golden batch again with this model, which may hold more tasks by now.

    Raises GoldenUnreadable and UnknownName.
    """
    golden = read_golden(path)
    then = load(path.read_bytes()).get("images")
    spec = model.spec
    if then is None or then.shape != (len(golden.rows), spec.channels, spec.image_size, spec.image_size):
        raise GoldenUnreadable(str(path), "its images are missing, or not of this backbone's size.")
    low, high = model.task(golden.task).meta.block
    if not all(low <= row < high for row in golden.rows):
        raise GoldenUnreadable(str(path), f"its rows are not those of task {golden.task!r}.")
    threads = torch.get_num_threads()
    torch.set_num_threads(golden.threads)
    try:
        now = _draw(model, golden)
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


def _draw(model: ComposedModel, golden: Golden) -> torch.Tensor:
    draws = [Draw(golden.task, row, golden.seed + i) for i, row in enumerate(golden.rows)]
    return sample(model, draws, golden.sampler)

"""Golden images: what a task draws from pinned seeds when registered, and again after every later addition.

The batch, the seeds, the sampler and the number type are part of the record, so that equal means equal to
the bit. In another environment (another torch, another processor) rounding may differ: then a tolerance
holds, and the result says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from affinery import tensor_files
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from trainers.errors import GoldenUnreadable

RECORD_KEY = "affinery.golden"
RECORD_KEYS = {"task", "rows", "seed", "sampler", "backbone", "environment", "threads"}
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


def golden_bytes(model: ComposedModel, task: str, environment_digest: str) -> bytes:
    """Draws the golden batch of a task and packs it with all that is needed to draw it again."""
    slot = model.task(task)
    count = len(slot.meta.class_names)
    rows = [slot.row(i % count) for i in range(BATCH)]
    images = _draw(model, task, rows, SETTINGS)
    record = {
        "task": task,
        "rows": rows,
        "seed": SEED,
        "sampler": asdict(SETTINGS),
        "backbone": model.fingerprint,
        "environment": environment_digest,
        "threads": torch.get_num_threads(),
    }
    return save(
        {"images": images}, metadata={RECORD_KEY: json.dumps(record, sort_keys=True, ensure_ascii=False)}
    )


def read_golden(path: Path) -> Mapping[str, Any]:
    """The record of a golden file. Raises GoldenUnreadable."""
    try:
        record: dict[str, Any] = tensor_files.read_json(tensor_files.read_header(path).metadata[RECORD_KEY])
        if missing := RECORD_KEYS - record.keys():
            raise ValueError(f"its record lacks {sorted(missing)[0]!r}")
        if type(record["threads"]) is not int or not 1 <= record["threads"] <= THREADS_LIMIT:
            raise ValueError(f"it was drawn with {record['threads']!r} threads")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise GoldenUnreadable(str(path), f"{error}.") from error
    return record


def replay(model: ComposedModel, golden: Path, environment_digest: str) -> Replay:
    """Draws a golden batch again with this model, which may hold more tasks by now.

    Raises GoldenUnreadable.
    """
    record = read_golden(golden)
    then = load(golden.read_bytes()).get("images")
    spec = model.spec
    if then is None or then.shape != (len(record["rows"]), spec.channels, spec.image_size, spec.image_size):
        raise GoldenUnreadable(str(golden), "its images are missing, or not of this backbone's size.")
    threads = torch.get_num_threads()
    torch.set_num_threads(int(record["threads"]))
    try:
        now = _draw(model, record["task"], record["rows"], SamplerSettings(**record["sampler"]))
    finally:
        torch.set_num_threads(threads)
    same = record["environment"] == environment_digest and record["backbone"] == model.fingerprint
    difference = float((now - then).abs().max())
    if torch.equal(now, then):
        level = "bit-exact"
    else:
        level = "tolerance" if not same and difference <= TOLERANCE else "failed"
    return Replay(str(record["task"]), level, difference, same)


def _draw(model: ComposedModel, task: str, rows: list[int], settings: SamplerSettings) -> torch.Tensor:
    draws = [Draw(task, int(row), SEED + i) for i, row in enumerate(rows)]
    return sample(model, draws, settings)

"""What a job may use, and how it is spread: chosen from what there is, with the reason in one sentence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Share:
    """What one attempt may use. workers: Ray workers, each with its part of it; memory 0: not limited.

    ray: the address of Ray, or of the file in which it will stand once Ray here has started.
    """

    cpus: float
    gpus: float = 0.0
    memory_bytes: int = 0
    workers: int = 1
    ray: str | None = None


def processors() -> int:
    """This machine's, or as many as OMP_NUM_THREADS allows."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    there = len(os.sched_getaffinity(0))
    return min(there, int(allowed)) if allowed.isdigit() and int(allowed) else there


@dataclass(frozen=True)
class Machine:
    """What there is to be shared out."""

    cpus: int
    gpus: int = 0


def machine() -> Machine:
    """This one, without loading torch for it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/proc/driver/nvidia/gpus").glob("*/information")))
    gpus = there if visible is None else len([entry for entry in visible.split(",") if entry.strip()])
    return Machine(processors(), min(there, gpus))

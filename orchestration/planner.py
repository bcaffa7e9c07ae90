"""What a job may use, and how it is spread: chosen from what there is, with the reason in one sentence."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from affinery import tensor_files
from orchestration.errors import NeverFits
from orchestration.jobs import DEFAULTS, Capacity, JobRecord

GIB = 1 << 30
HEADROOM = 0.9
"""Of a GPU's memory, what is planned with: the rest is CUDA's own, and what fragments."""


@dataclass(frozen=True)
class Share:
    """What one attempt may use, all its Ray workers together; memory 0: not limited.

    said: whether the job says what it needs; otherwise a cluster's largest machine decides. why: this
    strategy, in a sentence.
    ray: the address of Ray, or of the file in which it will stand once Ray here has started.
    """

    cpus: float
    gpus: float = 0.0
    memory_bytes: int = 0
    workers: int = 1
    ray: str | None = None
    said: bool = False
    strategy: str = "sequential"
    why: str = ""


@dataclass(frozen=True)
class Machine:
    """What there is to be shared out. gpu_bytes: the memory of the smallest GPU; 0 where it is not known."""

    cpus: int
    gpus: int = 0
    memory_bytes: int = 0
    gpu_bytes: int = 0

    @classmethod
    def of(cls, capacity: Capacity) -> Machine:
        """A part of this one."""
        here = machine()
        memory = min(capacity.memory_bytes, here.memory_bytes)
        return cls(
            int(min(capacity.cpus, here.cpus)),
            int(min(capacity.gpus, here.gpus)),
            int(memory),
            here.gpu_bytes,
        )

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.cpus, self.gpus, self.memory_bytes or math.inf)


def processors() -> int:
    """This machine's, or as many as OMP_NUM_THREADS allows."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    there = len(os.sched_getaffinity(0))
    return min(there, int(allowed)) if allowed.isdigit() and int(allowed) else there


def machine() -> Machine:
    """This one, without loading torch for it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/proc/driver/nvidia/gpus").glob("*/information")))
    gpus = there if visible is None else len([entry for entry in visible.split(",") if entry.strip()])
    return Machine(processors(), min(there, gpus), _memory())


def _memory() -> int:
    """The machine's memory, or as much as its container may use."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return found
    return min(found, int(limit)) if limit.isdigit() else found


def defaults(capacity: Capacity, choice: Choice | None = None) -> Mapping[str, Capacity]:
    """By kind, what a job takes of a worker that does not say it.

    What computes has the worker to itself, with all processors and one GPU, where nothing else was chosen.
    """
    whole = Capacity(min(capacity.cpus, processors()), min(capacity.gpus, 1.0), 0)
    training = whole
    if choice is not None:
        training = Capacity(
            whole.cpus if choice.cpus is None else min(choice.cpus, capacity.cpus),
            whole.gpus if choice.gpus is None else min(choice.gpus, capacity.gpus),
            0,
        )
    return {**DEFAULTS, "train": training, "evaluate": whole, "retention": whole}


def share(job: JobRecord, needed: Capacity, ray: str | None, choice: Choice) -> Share:
    """A job's part of its worker. choice: for the trainings that leave theirs open."""
    memory = 0 if math.isinf(needed.memory_bytes) else int(needed.memory_bytes)
    said = job.cpus is not None or job.gpus is not None
    open_to = job.kind == "train" and job.strategy is None and job.workers == 1 and not said
    workers = choice.workers if open_to else job.workers
    gpus = needed.gpus
    if workers > 1 and 0 < gpus < workers:
        gpus = float(workers)  # two that exchange gradients cannot share one
    strategy = job.strategy or (
        choice.strategy if open_to else "data-parallel" if workers > 1 else "sequential"
    )
    return Share(needed.cpus, gpus, memory, workers, ray, said, strategy, choice.why if open_to else "")


def as_before(chosen: Share, kept: Path) -> Share:
    """What the first attempt had: with other threads or workers, sums are rounded otherwise.

    kept: where that is written down. An attempt on a machine that has less takes what is there.
    """
    try:
        before = json.loads(kept.read_bytes())
    except (OSError, ValueError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        facts = {name: getattr(chosen, name) for name in LASTING}
        tensor_files.write_whole(kept, json.dumps(facts).encode())
        return chosen
    if before["cpus"] > chosen.cpus or before["gpus"] > chosen.gpus:
        return chosen
    return replace(chosen, **{name: before[name] for name in LASTING})


LASTING = ("cpus", "gpus", "workers", "strategy", "why")


def fitting(wanted: Share, nodes: Sequence[Capacity], job: str) -> Share:
    """What a cluster can give: Ray itself would wait for ever for what is nowhere.

    nodes: its machines, idle. Where the job does not say what it needs, that is the largest machine's
    processors and one of its GPUs. Raises NeverFits.
    """
    if not wanted.said and nodes and wanted.workers == 1:
        largest = max(nodes, key=lambda node: (node.gpus > 0, node.cpus))
        return replace(wanted, cpus=max(1.0, largest.cpus), gpus=min(1.0, largest.gpus))
    each = Capacity(wanted.cpus / wanted.workers, wanted.gpus / wanted.workers, 0)
    room = sum(_times(each, node) for node in nodes)
    if room < wanted.workers:
        there = "; ".join(told(node) for node in nodes) or "nothing"
        needs = f"{wanted.workers} × {told(each)}" if wanted.workers > 1 else told(each)
        raise NeverFits(job, needs, f"the machines of the cluster have {there}")
    return wanted


def _times(each: Capacity, node: Capacity) -> int:
    """How often a need fits into a machine."""
    pairs = ((each.cpus, node.cpus), (each.gpus, node.gpus))
    return min((int(has / needs + 1e-9) for needs, has in pairs if needs), default=1)


def told(amount: Capacity) -> str:
    """2 processors, 1 GPU and 8 GiB."""
    parts = [] if math.isinf(amount.cpus) else [_count(amount.cpus, "processor")]
    if amount.gpus and not math.isinf(amount.gpus):
        parts.append(_count(amount.gpus, "GPU"))
    if amount.memory_bytes and not math.isinf(amount.memory_bytes):
        parts.append(f"{amount.memory_bytes / GIB:.3g} GiB of memory")
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or "nothing"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


# --- choosing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demand:
    """What is to be planned: tasks on one backbone that train at once, and what one of them costs.

    together: one job trains them all. memory_bytes: of one task's training; 0 where it is not known.
    """

    tasks: int
    together: bool
    batch: int
    memory_bytes: int = 0
    strategy: str | None = None
    workers: int | None = None
    cpus: float | None = None
    gpus: float | None = None


@dataclass(frozen=True)
class Choice:
    """How each job is trained. cpus, gpus, memory_bytes: of one job; None leaves it to the worker."""

    strategy: str
    workers: int
    cpus: float | None
    gpus: float | None
    memory_bytes: int | None
    why: str


ALONE = Choice("sequential", 1, None, None, None, "it has the worker to itself")


def choose(demand: Demand, there: Machine) -> Choice:
    """The strategy for some tasks on a machine; what the user said stands, the rest follows."""
    strategy, why = (demand.strategy, "as asked for") if demand.strategy else _strategy(demand, there)
    if strategy == "parallel":
        return _parallel(demand, there, why)
    if strategy == "data-parallel":
        workers = demand.workers or max(2, there.gpus)
        cpus = demand.cpus or max(float(workers), float(there.cpus))
        gpus = float(workers if there.gpus >= workers else 0) if demand.gpus is None else demand.gpus
        return Choice(strategy, workers, cpus, gpus, demand.memory_bytes * workers or None, why)
    return Choice(strategy, 1, demand.cpus, demand.gpus, demand.memory_bytes or None, why)


def foreseen(job: JobRecord, waiting: int, memory_bytes: int, there: Machine) -> Choice:
    """How a worker that has this machine would train a job. waiting: jobs that leave it open, it included."""
    several = len(job.tasks) > 1
    said = None if several and job.strategy == "co-trained" else job.strategy
    demand = Demand(
        len(job.tasks) if several else waiting,
        several,
        int(job.recipe.get("batch", 0)),
        memory_bytes,
        said,
        job.workers if job.workers > 1 else None,
        job.cpus,
        job.gpus,
    )
    if said is None and not several and job.workers == 1 and (job.cpus, job.gpus) != (None, None):
        return replace(ALONE, cpus=job.cpus, gpus=job.gpus, why="it says itself what it takes")
    return choose(demand, there)


def _strategy(demand: Demand, there: Machine) -> tuple[str, str]:
    if demand.workers is not None and demand.workers > 1:
        return "data-parallel", f"one task was given {demand.workers} workers, so its batches are shared out"
    if demand.together and demand.tasks > 1:
        return "co-trained", f"{demand.tasks} tasks share one pass over the frozen backbone"
    if demand.tasks == 1:
        if there.gpus > 1 and demand.batch >= 8 * there.gpus:
            return (
                "data-parallel",
                f"one task and {there.gpus} GPUs: each takes part of every batch of {demand.batch}",
            )
        return "sequential", "one task has the worker to itself"
    side_by_side = _side_by_side(demand, there)
    if side_by_side > 1:
        if there.gpus:
            each = min(1.0, there.gpus / side_by_side)
            return (
                "parallel",
                f"{side_by_side} of {demand.tasks} fits run at once, each on {_count(each, 'GPU')}",
            )
        return "parallel", f"{side_by_side} of {demand.tasks} fits run at once on {there.cpus} processors"
    return "sequential", f"{told(there.capacity)} hold one of {demand.tasks} trainings at a time"


def _side_by_side(demand: Demand, there: Machine) -> int:
    """How many single fits gain from running at once.

    A GPU each, or a part of one that holds them; where there is none, four processors each, as far as memory
    goes: fewer gain nothing from being shared out.
    """
    if there.gpus:
        a_gpu = 1
        if there.gpu_bytes and demand.memory_bytes:
            a_gpu = max(1, int(there.gpu_bytes * HEADROOM // demand.memory_bytes))
        return min(demand.tasks, there.gpus * min(a_gpu, 4))
    fits = there.cpus // 4
    if demand.memory_bytes and there.memory_bytes:
        fits = min(fits, int(there.memory_bytes * HEADROOM // demand.memory_bytes))
    return max(1, min(demand.tasks, fits))


def _parallel(demand: Demand, there: Machine, why: str) -> Choice:
    beside = max(2, _side_by_side(demand, there)) if demand.tasks > 1 else 1
    cpus = demand.cpus or max(0.5, there.cpus / beside)
    gpus = demand.gpus
    if gpus is None:
        gpus = min(1.0, math.floor(100 * there.gpus / beside) / 100) if there.gpus else 0.0
    return Choice("parallel", 1, cpus, gpus, demand.memory_bytes or None, why)

"""Requests of many tasks drawn together: over one by one, over PEFT's adapters swapped; and a mixed pass.

    python -m benchmarks.serving [--quick] [--json FILE]

Both sides draw the same images from the same weights, in turns; their images are compared first. p95 is of
the time from when all requests are there to when each has its images. PEFT, one pipeline with its adapters
loaded, sets the request's adapter and draws. It has no Affiner, so beside it our tasks are the same LoRAs.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from torch import Tensor

from affinery.adapters.files import read_adapter
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.serving.engine import Ask, Engine
from benchmarks.adapters import FINGERPRINT, Adapters, Size, build
from benchmarks.timing import CLOCKS, Figure, Spread, Stopwatch, show, write
from tests import tiny_models as tiny

TASKS, REQUESTS, BATCH = 8, 32, 16
ROUNDS, QUICK_ROUNDS = 7, 3
STEPS, QUICK_STEPS = 10, 4
WIDTH, DEPTH, RANK = 192, 6, 8  # at 64 tokens
FORWARD_TARGET = 1.15  # times the bare backbone
SWAPPING_TARGET = 2.0


def model_of(tasks: int) -> ComposedModel:
    """A DiT of 64 tokens with so many Affiners."""
    config = {"width": WIDTH, "depth": DEPTH, "heads": 6, "patch": 2}
    model = ComposedModel(tiny.backbone(config=config, image_size=16), tiny.FINGERPRINT)
    for i in range(tasks):
        model.start(tiny.meta(f"t{i}", (4 + 2 * i, 6 + 2 * i), RANK), torch.Generator().manual_seed(i))
    return model


def asks(steps: int, called: str = "t{}", row: int | None = None) -> list[Ask]:
    """One image each, the tasks in turn. row: of the class table; each task's own first where not given."""
    settings = SamplerSettings(steps, 2.0)
    numbers = [i % TASKS for i in range(REQUESTS)]
    rows = [4 + 2 * number if row is None else row for number in numbers]
    return [Ask(called.format(number), (rows[i],), (i,), settings) for i, number in enumerate(numbers)]


class Swapped:
    """PEFT's adapters on one backbone; the active one draws."""

    def __init__(self, bench: Adapters) -> None:
        folders = [bench.theirs(number) for number in range(TASKS)]
        self.peft = peft.PeftModel.from_pretrained(
            copy.deepcopy(bench.backbone), folders[0], adapter_name="lora 0"
        )
        for number, folder in enumerate(folders[1:], 1):
            self.peft.load_adapter(folder, f"lora {number}")
        self.peft.eval()
        self.model = ComposedModel(self.peft.base_model.model, tiny.FINGERPRINT)

    def draw(self, ask: Ask) -> Tensor:
        self.peft.set_adapter(ask.task)
        return sample(self.model, [Draw(None, ask.rows[0], ask.seeds[0])], ask.settings)

    def one_by_one(self, wanted: list[Ask], waits: list[float]) -> None:
        start = time.perf_counter()
        for ask in wanted:
            self.draw(ask)
            waits.append(time.perf_counter() - start)


def against_swapping(clock: Stopwatch, rounds: int, steps: int, folder: Path) -> Iterator[Figure]:
    """32 requests over 8 LoRAs, micro-batched by the engine, over PEFT's one after another."""
    size = Size(WIDTH, DEPTH, 6, 8, RANK, BATCH, rounds)
    files = Adapters(folder, build(size), size)
    theirs = Swapped(files)
    model = ComposedModel(copy.deepcopy(files.backbone), FINGERPRINT)
    for number in range(TASKS):
        model.load(read_adapter(files.ours("lora", number)))
    wanted = asks(steps, "lora {}", row=1)
    for ask in asks(STEPS, "lora {}", row=1)[:TASKS]:
        own = sample(model, [Draw(ask.task, ask.rows[0], ask.seeds[0])], ask.settings)
        apart = float((own - theirs.draw(ask)).abs().max())
        changed = float(
            (own - sample(model, [Draw(None, ask.rows[0], ask.seeds[0])], ask.settings)).abs().max()
        )
        if not (apart <= 1e-4 and changed >= 1e-2):
            raise SystemExit(
                f"{ask.task}: images differ by {apart:.1e}; the task changes them by {changed:.1e}."
            )
    waits: tuple[list[float], list[float]] = ([], [])
    engine = Engine(model, BATCH, REQUESTS)
    try:
        ratio = clock.over(
            lambda: together(engine, wanted, waits[0]),
            {"swapped": lambda: theirs.one_by_one(wanted, waits[1])},
            rounds,
        )["swapped"]
    finally:
        engine.stop()
    yield Figure(
        "throughput over PEFT's adapters swapped",
        "×",
        Spread.of(ratio),
        None,
        SWAPPING_TARGET,
        more_is_better=True,
    )
    yield Figure(
        "p95 of a request's wait, beside PEFT's", "s", Spread.of([p95(waits[0])]), Spread.of([p95(waits[1])])
    )


def together(engine: Engine, wanted: list[Ask], waits: list[float]) -> None:
    start = time.perf_counter()
    tickets = [engine.submit(ask) for ask in wanted]
    for ticket in tickets:
        ticket.images.add_done_callback(lambda _: waits.append(time.perf_counter() - start))
    for ticket in tickets:
        ticket.images.result()


def one_by_one(model: ComposedModel, wanted: list[Ask], waits: list[float]) -> None:
    start = time.perf_counter()
    for ask in wanted:
        sample(model, [Draw(ask.task, ask.rows[0], ask.seeds[0])], ask.settings)
        waits.append(time.perf_counter() - start)


def passes(model: ComposedModel) -> tuple[Callable[[], object], Callable[[], object]]:
    """A pass of the bare backbone, and one of a batch that mixes all tasks, arranged as the engine does."""
    x, t = tiny.inputs(BATCH, size=16)
    rows = torch.full((BATCH,), model.null_row)
    mixed = model.plan([f"t{i * TASKS // BATCH}" for i in range(BATCH)])

    def run(tasks: Any) -> Callable[[], object]:
        def once() -> None:
            with torch.no_grad():
                for _ in range(3):
                    model.denoise(x, t, rows, tasks)

        return once

    return run(model.plan([None] * BATCH)), run(mixed)


def p95(waits: list[float]) -> float:
    return sorted(waits)[int(0.95 * (len(waits) - 1))]


def figures(rounds: int, steps: int) -> list[Figure]:
    model, clock, wanted = model_of(TASKS), CLOCKS["wall"], asks(steps)
    bare, mixed = passes(model)
    forward = clock.over(bare, {"mixed": mixed}, rounds)["mixed"]
    ours: list[float] = []
    theirs: list[float] = []
    engine = Engine(model, BATCH, REQUESTS)
    try:
        slower = clock.over(
            lambda: together(engine, wanted, ours),
            {"alone": lambda: one_by_one(model, wanted, theirs)},
            rounds,
        )["alone"]
    finally:
        engine.stop()
    with TemporaryDirectory() as folder:
        swapped = list(against_swapping(clock, rounds, steps, Path(folder)))
    return [
        *swapped,
        Figure("throughput over drawing one by one", "×", Spread.of(slower), more_is_better=True),
        Figure("p95 of a request's wait", "s", Spread.of([p95(ours)]), Spread.of([p95(theirs)])),
        Figure("a mixed pass over a bare one", "×", Spread.of(forward), target=FORWARD_TARGET),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps, about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    rounds, steps = (QUICK_ROUNDS, QUICK_STEPS) if chosen.quick else (ROUNDS, STEPS)
    load = os.getloadavg()[0]
    found = figures(rounds, steps)
    versions = {"torch": version("torch"), "python": platform.python_version()}
    facts: dict[str, Any] = {"requests": REQUESTS, "tasks": TASKS, "steps": steps, "batch": BATCH}
    facts |= {"threads": torch.get_num_threads(), "versions": versions, "load": load}
    title = f"{REQUESTS} requests over {TASKS} tasks, {steps} steps, at most {BATCH} images a pass"
    show(title, f"load {load:.1f} at the start", found, rival="one by one")
    if chosen.json:
        write(chosen.json, facts, found)


if __name__ == "__main__":
    main()

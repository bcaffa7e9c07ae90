"""Requests of many tasks drawn together against one by one, and a mixed pass against a bare one.

    python -m benchmarks.serving [--quick] [--json FILE]

Both sides draw the same images from the same model, in turns. p95 is of the time from when all requests are
there to when each has its images.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.serving.engine import Ask, Engine
from benchmarks.timing import CLOCKS, Figure, Spread, show, write
from tests import tiny_models as tiny

TASKS, REQUESTS, BATCH = 8, 32, 16
ROUNDS, QUICK_ROUNDS = 7, 3
STEPS, QUICK_STEPS = 10, 4
WIDTH, DEPTH, RANK = 192, 6, 8  # at 64 tokens
FORWARD_TARGET = 1.15  # times the bare backbone


def model_of(tasks: int) -> ComposedModel:
    """A DiT of 64 tokens with so many Affiners."""
    config = {"width": WIDTH, "depth": DEPTH, "heads": 6, "patch": 2}
    model = ComposedModel(tiny.backbone(config=config, image_size=16), tiny.FINGERPRINT)
    for i in range(tasks):
        model.start(tiny.meta(f"t{i}", (4 + 2 * i, 6 + 2 * i), RANK), torch.Generator().manual_seed(i))
    return model


def asks(steps: int) -> list[Ask]:
    """One image each, the tasks in turn."""
    settings = SamplerSettings(steps, 2.0)
    return [Ask(f"t{i % TASKS}", (4 + 2 * (i % TASKS),), (i,), settings) for i in range(REQUESTS)]


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
    return [
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

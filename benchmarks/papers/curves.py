"""A figure over the steps of a training: what a method reaches, and how soon."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from affinery.adapters.files import Adapter
from benchmarks.papers.cells import VERSION, Bench, Cell
from benchmarks.papers.sequences import figure
from trainers.pictures import chart
from trainers.session import TrainingSession

LOOKS = 5


def trajectory(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The Fréchet distance before a cell's first step, and after each fifth of its steps."""
    facts = ["trajectory", VERSION, LOOKS, bench.key(cell)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]

    def compute() -> dict[str, Any]:
        training = bench.session(cell, reports=LOOKS)
        points = [[0, figure(bench.judge(cell, as_it_stands(training, cell.dataset)).results)]]
        while not training.done:
            training.advance()
            adapter = as_it_stands(training, cell.dataset)
            points.append([training.step, figure(bench.judge(cell, adapter).results)])
        return {"points": points}

    return bench.kept(key, compute)


@torch.no_grad()
def as_it_stands(training: TrainingSession, task: str) -> Adapter:
    """A task's adapter, of its running means; the training goes on as if nobody had looked."""
    learner = training.training.learner(task)
    kept = {name: tensor.detach().clone() for name, tensor in learner.tensors.items()}
    learner.settle()
    adapter = training.model.adapter(task)
    for name, tensor in learner.tensors.items():
        tensor.copy_(kept[name])
    return adapter


def drawn(lines: Mapping[str, Sequence[Sequence[float]]], dataset: str) -> bytes:
    """By method, (steps, figure) → a PNG."""
    return chart(lines, "steps", "Fréchet distance", f"{dataset}: distance over steps", log=True)

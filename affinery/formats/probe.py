"""A small batch of everything that a model can be asked, to compare what was exported with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from affinery.composed import ComposedModel


@dataclass(frozen=True)
class Probe:
    """x: (B, C, H, W); t: (B,); rows: (B,) rows of the model's class table; tasks: one a sample."""

    x: Tensor
    t: Tensor
    rows: Tensor
    tasks: tuple[str | None, ...]

    @torch.no_grad()
    def answer(self, model: ComposedModel) -> Tensor:
        return model.denoise(self.x, self.t, self.rows, model.plan(self.tasks))


def probe(model: ComposedModel, tasks: list[str | None], size: int = 7, seed: int = 0) -> Probe:
    """Tasks in turn, each with its classes and the null row, at time steps from all over the schedule."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *model.spec.latent_shape(), generator=generator)
    chosen = [tasks[i % len(tasks)] for i in range(size)]
    rows = []
    for i, task in enumerate(chosen):
        low, high = (0, model.null_row) if task is None else model.task(task).meta.block
        own = [*range(low, min(high, low + size)), model.null_row]
        rows.append(own[(i // len(tasks)) % len(own)])
    steps = int(model.spec.schedule.get("num_train_timesteps", 1000))
    return Probe(x, torch.linspace(0, steps - 1, size).long(), torch.tensor(rows), tuple(chosen))

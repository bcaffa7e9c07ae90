"""One task in training: where it stands in its schedule, what it trains, and when it has learnt enough."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainers.recipe import Recipe
from trainers.streams import TaskData, TaskStream

HORIZON = 50  # steps that the running mean of a loss looks back
WORTH = 1e-3  # how much lower it must be to count as lower


@dataclass
class Standing:
    """Where a task stands, as it is kept in a checkpoint.

    position: in its schedule, which reaches its end at the recipe's `steps`; taken: steps that it has taken.
    mean, best: of its loss, running and lowest; stale: steps since the mean was lowest.
    """

    position: int = 0
    taken: int = 0
    mean: float = 0.0
    best: float | None = None
    stale: int = 0


@dataclass(eq=False)
class Learner:
    """A task beside others. tensors: what it trains, by name; averages: their running means."""

    data: TaskData
    recipe: Recipe
    stream: TaskStream
    standing: Standing = field(default_factory=Standing)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.data.meta.task

    @property
    def done(self) -> bool:
        return self.standing.position >= self.recipe.steps

    @property
    def masked(self) -> bool:
        """Whether its next batch drops tokens: until its finish."""
        return self.recipe.mask_ratio > 0 and self.standing.position < self.recipe.finish

    @property
    def rate(self) -> float:
        return self.recipe.rate(self.standing.position)

    def advance(self, loss: float) -> None:
        """Counts a step. Where its loss has stopped falling, the task goes on to its finish at once."""
        here = self.standing
        here.position, here.taken = here.position + 1, here.taken + 1
        if not self.recipe.patience or here.position >= self.recipe.finish:
            return
        here.mean += (loss - here.mean) / min(here.taken, HORIZON)
        if here.best is None or here.mean < (1 - WORTH) * here.best:
            here.best, here.stale = here.mean, 0
            return
        here.stale += 1
        if here.stale >= self.recipe.patience:
            here.position = self.recipe.finish

    @torch.no_grad()
    def begin(self) -> None:
        """Its running means begin where its tensors are."""
        for name, tensor in self.tensors.items():
            self.averages[name] = tensor.detach().clone()

    @torch.no_grad()
    def average(self) -> None:
        decay = min(self.recipe.ema_decay, (self.standing.taken + 1) / (self.standing.taken + 10))
        tensors = [self.tensors[name] for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), tensors, 1 - decay)

    @torch.no_grad()
    def settle(self) -> None:
        """Ends its training: what it trained becomes its running mean."""
        for name, tensor in self.tensors.items():
            tensor.copy_(self.averages[name])

    def state(self) -> dict[str, Any]:
        return asdict(self.standing)

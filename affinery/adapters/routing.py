"""Which adapter each sample of a batch uses.

Tasks of one kind and one config form a *group*; their tensors are stacked, and a task is its slot in the
stacks. Slot 0 of a group does nothing. Adapted modules are deep inside a network that knows nothing of tasks,
so they share one `Route` object, and the composed model sets its plan for the length of a forward pass. What
they may exploit (one task, blocks of consecutive tasks) is found out once a pass, not once a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

BACKBONE = (0, 0)  # the group and slot of a sample that the untouched backbone computes


@dataclass(frozen=True)
class Blocks:
    """The samples are `count` blocks of equal length, of slots first, first + 1, …: one batched product.

    With a count of one, all samples are of one task: a plain product.
    """

    first: int
    count: int


@dataclass(frozen=True)
class Mix:
    """Each sample picks its slot: slots is (B,). listed: the same as numbers, where they are known."""

    slots: Tensor
    listed: tuple[int, ...] | None = None


Choice = Blocks | Mix


@dataclass(frozen=True)
class Share:
    """The samples of one group. rows: their places in the batch, None meaning all of it."""

    group: int
    choice: Choice
    rows: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """How a batch is shared out.

    Either every share has rows of its own: their outputs are computed side by side, and `order` puts their
    concatenation back into the batch's order (None where it is in order). Or all shares cover the whole
    batch, and each changes the rows of its tasks and leaves the others (slot 0) alone.

    tasks: the names that it was made for and where each lay then, so that a plan that is kept is not used
    once a name means something else.
    """

    shares: tuple[Share, ...] = ()
    order: Tensor | None = None
    tasks: tuple[tuple[str | None, tuple[int, int]], ...] = field(default=(), compare=False)

    @property
    def split(self) -> bool:
        return len(self.shares) > 0 and self.shares[0].rows is not None

    def alone(self, share: Share) -> Plan:
        """The plan of a batch that holds a share's samples and no others."""
        return Plan((Share(share.group, share.choice),))


def choice_for(slots: Sequence[int], device: torch.device | str = "cpu") -> Choice:
    """The cheapest way to compute samples of these slots."""
    first = min(slots)
    count = max(slots) - first + 1
    each, rest = divmod(len(slots), count)
    blocks = [first + i // each for i in range(len(slots))] if each and not rest else []
    if list(slots) == blocks:
        return Blocks(first, count)
    return Mix(torch.tensor(list(slots), dtype=torch.long, device=device), tuple(slots))


def plan_for(places: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Plan:
    """The cheapest plan for a batch whose samples are at these (group, slot) places."""
    groups = sorted({group for group, _ in places})
    if groups == [0]:
        return Plan()
    if len(groups) == 1:
        return Plan((Share(groups[0], choice_for([slot for _, slot in places], device)),))
    shares, order = [], []
    for group in groups:
        rows = [row for row, (other, _) in enumerate(places) if other == group]
        order += rows
        choice = choice_for([places[row][1] for row in rows], device)
        shares.append(Share(group, choice, torch.tensor(rows, device=device)))
    if order == sorted(order):
        return Plan(tuple(shares))
    return Plan(tuple(shares), torch.tensor(order, device=device).argsort())


def fixed_plan(
    places: Sequence[tuple[int, int]], groups: Sequence[int], device: torch.device | str = "cpu"
) -> Plan:
    """A plan whose form depends on the groups alone, so that a compiled model serves every batch with it."""
    return Plan(
        tuple(
            Share(
                group,
                Mix(torch.tensor([slot if g == group else 0 for g, slot in places], device=device)),
            )
            for group in groups
        )
    )


@dataclass
class Route:
    """The plan of the pass under way; outside any pass, the untouched backbone."""

    plan: Plan = field(default_factory=Plan)
    under_way: bool = False

    @contextmanager
    def using(self, plan: Plan) -> Iterator[None]:
        before, self.plan = (self.plan, self.under_way), plan
        self.under_way = True
        try:
            yield
        finally:
            self.plan, self.under_way = before

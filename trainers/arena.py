"""The tensors that tasks of one group train, each task's in one piece of memory.

An adapter is hundreds of small tensors. As views of one piece they are moved, averaged, clipped and sent in
one operation each; and a task is a piece of its own, with a learning rate and a step count of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affinery.adapters.sites import Bank

# Of several tasks' gradients each task's lie together, so those of one tensor lie apart: that is meant.
warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")

ROUNDING = 1e-5
ROUNDING_ANYWHERE = 1e-6


@dataclass(frozen=True)
class Piece:
    """One tensor of a task: columns start … stop of its row. part: a number for the kind of part it is."""

    start: int
    stop: int
    part: int
    shaped: bool  # whether it is more than one number a task


class Arena:
    """What n tasks of one group train at one rate: slots 1 … n of these parts of these banks.

    The banks' stacks are views of its memory, (1 + n, P) with the slot that does nothing first; the
    parameters that are exposed have views of `gradients`, (n, P), as their gradients. rows: each task's (P,)
    as a parameter of its own, for the optimizer.
    """

    def __init__(self, parts: Sequence[tuple[Bank, str]], count: int, rate: float) -> None:
        self.rate = rate
        kinds = sorted({part for _, part in parts})
        stacks = [bank.stack(part).detach()[: 1 + count] for bank, part in parts]
        self.memory = torch.cat([stack.reshape(1 + count, -1) for stack in stacks], dim=1)
        self.gradients = torch.zeros_like(self.memory[1:])
        self.pieces: list[Piece] = []
        self._views: list[tuple[Bank, str, slice, torch.Size]] = []
        at = 0
        for (bank, part), stack in zip(parts, stacks, strict=True):
            shape = stack.shape[1:]
            here = slice(at, at + shape.numel())
            bank.place(part, viewed(self.memory, here, shape))
            self._views.append((bank, part, here, shape))
            self.pieces.append(Piece(here.start, here.stop, kinds.index(part), bool(shape)))
            at = here.stop
        self.kinds = len(kinds)
        self.rows = [nn.Parameter(row) for row in self.memory[1:]]
        for row, gradient in zip(self.rows, self.gradients, strict=True):
            row.grad = gradient

    def bind(self) -> None:
        """Gives the exposed parameters their gradients' memory; once all parts of their banks are placed."""
        for bank, part, here, shape in self._views:
            bank.exposed[part].grad = viewed(self.gradients, here, shape)

    def drop_rounding(self) -> None:
        """Sets gradients to zero that are rounding error beside the largest of their task's tensor.

        Some directions have no effect at all, like a shift of all keys, which softmax does not see. Their
        gradient is nothing but rounding, which depends on what else is in the batch, and Adam would blow it
        up to full steps. Where that is a whole tensor, as the shift of a layer that makes keys only, it shows
        beside the same part of the task's other layers.
        """
        largest = self._largest()  # (pieces, n)
        part = torch.tensor([piece.part for piece in self.pieces], device=largest.device)
        anywhere = largest.new_zeros(self.kinds, largest.shape[1])
        anywhere.scatter_reduce_(0, part[:, None].expand_as(largest), largest, "amax")
        own = torch.tensor([[ROUNDING * piece.shaped] for piece in self.pieces], device=largest.device)
        floors = torch.maximum(own * largest, ROUNDING_ANYWHERE * anywhere[part])  # (pieces, n)
        if self.gradients.is_cuda:
            sizes = torch.tensor([piece.stop - piece.start for piece in self.pieces], device=floors.device)
            columns = len(self.gradients[0])
            floor = floors.T.repeat_interleave(sizes, dim=1, output_size=columns)
            self.gradients.masked_fill_(self.gradients.abs() < floor, 0)
            return
        for piece, each in zip(self.pieces, floors.tolist(), strict=True):
            for gradient, size in zip(self.gradients[:, piece.start : piece.stop], each, strict=True):
                torch.ops.aten.hardshrink.out(gradient, size, out=gradient)  # ten times faster than a mask

    def _largest(self) -> Tensor:
        """(pieces, n): the largest size in each task's tensor."""
        gradients = [self.gradients[:, piece.start : piece.stop] for piece in self.pieces]
        if self.gradients.is_cuda:  # a few kernels for all
            each = [row for gradient in gradients for row in gradient]
            return torch.stack(list(torch._foreach_norm(each, float("inf")))).reshape(len(gradients), -1)
        # Twenty times faster there than the norm.
        return torch.stack([torch.maximum(one.amax(dim=1), -one.amin(dim=1)) for one in gradients])


def viewed(memory: Tensor, columns: slice, shape: torch.Size) -> Tensor:
    """Columns of every row, each in a shape. (n, P) → (n, *shape)"""
    part = memory[:, columns]
    return part.unflatten(1, shape) if shape else part[:, 0]

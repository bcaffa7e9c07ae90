"""A training pass as a CUDA graph: for small batches, whose time is that of launching kernels one by one.

The pass is recorded once for each form of its inputs and played back with other values in the same memory. It
must not ask the device for values, and must leave its gradients in memory that stays where it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
log = logging.getLogger(__name__)

Inputs = dict[str, Tensor | None]
Pass = Callable[[Inputs], Tensor]


@dataclass
class Recording:
    """A recorded pass: the memory that it reads and writes."""

    graph: Any  # torch.cuda.CUDAGraph
    inputs: Inputs
    output: Tensor

    def play(self, inputs: Inputs) -> Tensor:
        for name, held in self.inputs.items():
            if held is not None:
                held.copy_(inputs[name], non_blocking=True)  # type: ignore[arg-type]
        self.graph.replay()
        return self.output


@dataclass
class Graphs:
    """Recordings by a key, which says what a pass depends on beside its inputs' values.

    Anything but CUDA is computed as it is; so is what cannot be recorded, after a warning.
    """

    wanted: bool
    device: torch.device
    recordings: dict[Any, Recording] = field(default_factory=dict)

    @property
    def on(self) -> bool:
        return self.wanted and self.device.type == "cuda"

    def run(self, key: Any, compute: Pass, inputs: Inputs, gradients: list[Tensor]) -> Tensor:
        """What `compute` gives. gradients: the memory that it adds to, which warming up must not change."""
        if not self.on:
            return compute(inputs)
        form = (key, tuple((name, None if one is None else one.shape) for name, one in inputs.items()))
        if form not in self.recordings:
            try:
                self.recordings[form] = self._record(compute, inputs, gradients)
            except RuntimeError as error:
                log.warning("This training cannot be recorded as a CUDA graph, and runs without: %s", error)
                self.wanted = False
                return compute(inputs)
        return self.recordings[form].play(inputs)

    def forget(self) -> None:
        """Where tensors have moved, what was recorded reads memory that is no longer theirs."""
        self.recordings.clear()

    def _record(self, compute: Pass, inputs: Inputs, gradients: list[Tensor]) -> Recording:
        held = {name: None if one is None else one.clone() for name, one in inputs.items()}
        before = [gradient.clone() for gradient in gradients]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                compute(held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = compute(held)
        finally:
            torch.cuda.synchronize()
            for gradient, value in zip(gradients, before, strict=True):
                gradient.copy_(value)
        return Recording(graph, held, output)

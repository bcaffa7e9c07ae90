"""What tasks are trained on: their images in memory, and the endless batches drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affinery.adapters.files import AdapterMeta
from affinery.diffusion.schedule import stratified_steps
from affinery.errors import ConfigInvalid
from trainers.data import as_unit
from trainers.recipe import Recipe


@dataclass(frozen=True)
class Captions:
    """What a task's images are told. embedded: (u, L, E), the empty caption first; which: (n,) of them."""

    embedded: Tensor
    which: Tensor


@dataclass(frozen=True)
class TaskData:
    """A task's images in memory.

    images: (n, C, H, W) bytes, or floats that are denoised as they are, like latents; labels: (n,) from 0 to
    M − 1; captions: for text-conditional backbones; conditions: (n, C', H', W') bytes, in pixels.
    """

    meta: AdapterMeta
    images: Tensor
    labels: Tensor
    captions: Captions | None = None
    conditions: Tensor | None = None


@dataclass
class Batch:
    """What one task contributes to one step: B samples and everything random about them."""

    x0: Tensor  # (B, C, H, W), pixels in [−1, 1]
    rows: Tensor  # (B,) rows of the class table
    t: Tensor  # (B,)
    noise: Tensor  # (B, C, H, W)
    keep: Tensor | None  # (B, K)
    text: Tensor | None  # (B, L, E)
    condition: Tensor | None  # (B, C', H', W') in [−1, 1]

    def cut(self, part: slice) -> Batch:
        """These samples of it."""
        told: dict[str, Any] = {
            name: None if value is None else value[part] for name, value in vars(self).items()
        }
        return Batch(**told)


class TaskStream:
    """One task's endless batches, drawn from its own generator: their state is all there is to resume."""

    def __init__(self, data: TaskData, recipe: Recipe, null_row: int, tokens: int, steps: int) -> None:
        self.data, self.recipe = data, recipe
        self.null_row, self.tokens, self.time_steps = null_row, tokens, steps
        self.generator = torch.Generator().manual_seed(recipe.seed)
        order = torch.argsort(data.labels, stable=True)
        classes = len(data.meta.class_names)
        if len(data.labels) != len(data.images) or not bool(
            ((data.labels >= 0) & (data.labels < classes)).all()
        ):
            raise ConfigInvalid("dataset", f"its labels are not those of the {classes} classes of its task.")
        counts = torch.bincount(data.labels, minlength=classes)
        if int(counts.min()) == 0:
            empty = data.meta.class_names[int(counts.argmin())]
            raise ConfigInvalid(
                "dataset", f"class {empty!r} of task {data.meta.task!r} has no image to train on."
            )
        self.by_class, self.counts, self.firsts = order, counts, counts.cumsum(0) - counts

    def next(self, masked: bool) -> Batch:
        """Classes are drawn evenly, then an image of the class; time steps are stratified."""
        generator, size = self.generator, self.recipe.batch
        labels = torch.randint(len(self.counts), (size,), generator=generator)
        within = (torch.rand(size, generator=generator) * self.counts[labels]).long()
        chosen = self.by_class[self.firsts[labels] + within]
        images = self.data.images[chosen]
        x0 = images if images.is_floating_point() else as_unit(images)
        dropped = torch.rand(size, generator=generator) < self.recipe.label_dropout
        rows = torch.where(dropped, self.null_row, labels + self.data.meta.block[0])
        t = stratified_steps(size, self.time_steps, generator)
        noise = torch.randn(x0.shape, generator=generator)
        keep = None
        if masked:
            count = max(1, round(self.tokens * (1 - self.recipe.mask_ratio)))
            order = torch.rand(size, self.tokens, generator=generator).argsort(dim=1)
            keep = order[:, :count].sort(dim=1).values
        return Batch(x0, rows, t, noise, keep, self._text(chosen, dropped), self._condition(chosen))

    def _text(self, chosen: Tensor, dropped: Tensor) -> Tensor | None:
        """A sample without its class is one without its caption too."""
        captions = self.data.captions
        if captions is None:
            return None
        return captions.embedded[captions.which[chosen].masked_fill(dropped, 0)]

    def _condition(self, chosen: Tensor) -> Tensor | None:
        """Never dropped: guidance tells both twins the same."""
        return None if self.data.conditions is None else as_unit(self.data.conditions[chosen])

"""What is drawn of a task to be judged: all classes alike, told what real images were told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from trainers.data import Split, as_unit

PIXELS_AT_ONCE = 2_000_000
"""So many pixels, over a batch's images, are drawn at once to be judged."""


class Told:
    """The captions and conditions of images, by class: of those kept back, else of those learnt from."""

    def __init__(self, split: Split, captions: bool) -> None:
        self.captions = captions
        self.split = split

    def to(self, label: int, turn: int) -> tuple[str, Tensor | None]:
        """What the image of some turn is told, one image of the class after the other."""
        for images in (self.split.held_out, self.split.train):
            own = (images.labels == label).nonzero().flatten()
            if len(own):
                chosen = int(own[turn % len(own)])
                caption = images.captions[chosen] if self.captions and images.captions else ""
                condition = None if images.conditions is None else as_unit(images.conditions[chosen])
                return caption, condition
        return "", None


@dataclass(frozen=True)
class Samples:
    """images: (n, C, H, W) in [−1, 1]; labels: (n,) the classes asked for; draws: all that was asked for."""

    images: Tensor
    labels: Tensor
    draws: tuple[Draw, ...]


def draw_samples(
    model: ComposedModel, task: str, split: Split, settings: SamplerSettings, count: int, seed: int
) -> Samples:
    """`count` images of a task, or one of each class where those are more.

    Captions and conditions are those of images that were kept back, where there are some of the class.
    """
    slot = model.task(task)
    classes = len(slot.meta.class_names)
    labels = torch.arange(max(count, classes)) % classes
    told = Told(split, model.spec.text is not None)
    draws = tuple(
        Draw(task, slot.row(int(label)), seed + i, *told.to(int(label), i // classes))
        for i, label in enumerate(labels)
    )
    at_once = max(8, PIXELS_AT_ONCE // model.image_size(task) ** 2)
    return Samples(drawn(model, draws, settings, at_once), labels, draws)


def drawn(model: ComposedModel, draws: Sequence[Draw], settings: SamplerSettings, at_once: int) -> Tensor:
    """All draws, `at_once` of them together, in main memory; fewer where a GPU has no room."""
    images: list[Tensor] = []
    done = 0
    while done < len(draws):
        try:
            images.append(sample(model, draws[done : done + at_once], settings).cpu())
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once = max(1, at_once // 2)
            torch.cuda.empty_cache()
        else:
            done += at_once
    return torch.cat(images)

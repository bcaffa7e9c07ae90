"""How far samples are recognised as what was asked for, by a classifier of the real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from trainers.data import Split, as_unit

PIXELS_AT_ONCE = 2_000_000
"""So many pixels, over a batch's images, are drawn at once to be judged."""


@dataclass(frozen=True)
class Recognition:
    """share: of the samples, those taken for the class asked for; by_class the same for each class.

    real_accuracy: the same classifier's, on real images that neither it nor the adapter was trained on.
    """

    share: float
    by_class: tuple[float, ...]
    real_accuracy: float
    samples: int
    real_images: int


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


class Recogniser(nn.Module):
    """A small convolutional classifier. (B, C, H, W) in [−1, 1] → (B, M) scores.

    It looks at 32 × 32 pixels at most, so that judging costs the same whatever the images' size.
    """

    LOOKS_AT = 32

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(channels, 32),
            nn.MaxPool2d(2),
            *convolution(32, 64),
            nn.MaxPool2d(2),
            *convolution(64, 64),
            nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64 * 4 * 4, classes))

    def forward(self, x: Tensor) -> Tensor:
        if max(x.shape[2:]) > self.LOOKS_AT:
            x = F.adaptive_avg_pool2d(x, self.LOOKS_AT)
        scores: Tensor = self.head(self.features(x).flatten(1))
        return scores


def shifted(x: Tensor, generator: torch.Generator, reach: int = 1) -> Tensor:
    """The batch moved by up to `reach` pixels along both axes: exact places are not to be relied on."""
    dy, dx = (int(n) for n in torch.randint(-reach, reach + 1, (2,), generator=generator))
    return torch.roll(x, (dy, dx), dims=(2, 3))


def train_recogniser(
    images: Tensor, labels: Tensor, classes: int, steps: int = 200, seed: int = 0
) -> Recogniser:
    """images: (n, C, H, W) in [−1, 1]; labels: (n,) → a classifier in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recogniser(images.shape[1], classes)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        model.train()
        for _ in range(steps):
            rows = torch.randint(len(images), (min(128, len(images)),), generator=generator)
            loss = F.cross_entropy(
                model(shifted(images[rows], generator)), labels[rows], label_smoothing=0.05
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            plan.step()
    return model.eval()


@torch.no_grad()
def recognised(model: Recogniser, images: Tensor, batch: int = 512) -> Tensor:
    """(n, C, H, W) → (n,) the classes they are taken for."""
    return torch.cat([model(images[i : i + batch]).argmax(dim=1) for i in range(0, len(images), batch)])


def recognition(
    model: Recogniser, samples: Tensor, asked: Tensor, real: Tensor, real_labels: Tensor, classes: int
) -> Recognition:
    """samples, asked: what was drawn and the classes it was drawn as; real, real_labels: held-out images."""
    right = (recognised(model, samples) == asked).float()
    by_class = tuple(float(right[asked == label].mean()) for label in range(classes))
    accuracy = float((recognised(model, real) == real_labels).float().mean())
    return Recognition(float(right.mean()), by_class, accuracy, len(samples), len(real))


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
class Judgement:
    """What a task draws and how it is recognised.

    recognition: None where there is one class only, or no image was kept back. draws: what was asked for,
    with the captions and conditions of real images.
    """

    images: Tensor
    labels: Tensor
    recognition: Recognition | None
    draws: tuple[Draw, ...] = ()


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


def judge(
    model: ComposedModel, task: str, split: Split, settings: SamplerSettings, count: int = 200, seed: int = 0
) -> Judgement:
    """Draws `count` images, all classes alike, and has a classifier of the real images look at them.

    Captions and conditions are those of images that were kept back, where there are some of the class.
    """
    slot = model.task(task)
    classes = len(slot.meta.class_names)
    count = max(count, classes)
    labels = torch.arange(count) % classes
    told = Told(split, model.spec.text is not None)
    draws = tuple(
        Draw(task, slot.row(int(label)), seed + i, *told.to(int(label), i // classes))
        for i, label in enumerate(labels)
    )
    images = drawn(model, draws, settings, max(8, PIXELS_AT_ONCE // model.image_size(task) ** 2))
    if classes == 1 or not len(split.held_out.labels):
        return Judgement(images, labels, None, draws)
    recogniser = train_recogniser(split.train.unit(), split.train.labels, classes, seed=seed)
    held = split.held_out
    return Judgement(
        images, labels, recognition(recogniser, images, labels, held.unit(), held.labels, classes), draws
    )

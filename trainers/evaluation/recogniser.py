"""A classifier of the real images: whether samples are recognised as what was asked for.

What it sees before it decides are also the features by which small images are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.data import as_unit


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


LOOKS_AT = 32
AT_ONCE = 256


def looked_at(images: Tensor, rows: Tensor | None = None) -> Tensor:
    """Bytes, of some rows → what is looked at of them, in [−1, 1]: 32 × 32 pixels at most.

    A part at a time: whole, in floats, a dataset of photographs may not fit into memory.
    """
    chosen = torch.arange(len(images)) if rows is None else rows
    return torch.cat([shrunk(as_unit(images[part])) for part in chosen.split(AT_ONCE)])


def shrunk(images: Tensor) -> Tensor:
    """(n, C, H, W) → with 32 × 32 pixels at most"""
    return F.adaptive_avg_pool2d(images, LOOKS_AT) if max(images.shape[2:]) > LOOKS_AT else images


class Recogniser(nn.Module):
    """A small convolutional classifier. (B, C, H, W) in [−1, 1] → (B, M) scores.

    It looks at 32 × 32 pixels at most, so that judging costs the same whatever the images' size.
    """

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
        scores: Tensor = self.head(self.seen(x).flatten(1))
        return scores

    def seen(self, x: Tensor) -> Tensor:
        """(B, 64, 4, 4): what it decides by."""
        features: Tensor = self.features(shrunk(x))
        return features


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

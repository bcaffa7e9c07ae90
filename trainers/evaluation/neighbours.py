"""Whether samples are copies of training images: how near the nearest one is, pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.data import as_unit
from trainers.evaluation.distances import distances

LOOKS_AT = 32
QUANTILE = 0.01


@dataclass(frozen=True)
class Neighbours:
    """nearest: (n,) of each sample the training image that is nearest. distance: root mean square of pixels.

    share: of samples nearer to a training image than 99 % of the held-out images are; about 1 % is what
    chance gives, much more is copying. None where no image was kept back.
    """

    nearest: Tensor
    distance: float
    held_out_distance: float | None
    share: float | None


def neighbours(samples: Tensor, train: Tensor, held_out: Tensor) -> Neighbours:
    """samples: (n, C, H, W) in [−1, 1]; train, held_out: bytes. They are looked at with 32 × 32 pixels."""
    known = _small(as_unit(train))
    found, nearest = _nearest(_small(samples), known)
    if not len(held_out):
        return Neighbours(nearest, float(found.median()), None, None)
    usual, _ = _nearest(_small(as_unit(held_out)), known)
    share = float((found < usual.quantile(QUANTILE)).float().mean())
    return Neighbours(nearest, float(found.median()), float(usual.median()), share)


def _small(images: Tensor) -> Tensor:
    """(n, pixels), so that the distance of two is the root of their mean square difference."""
    if images.shape[-1] > LOOKS_AT:
        images = F.adaptive_avg_pool2d(images, LOOKS_AT)
    flat = images.flatten(1)
    return flat / math.sqrt(flat.shape[1])


def _nearest(images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    parts = [part.min(dim=1) for part in distances(images, known)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

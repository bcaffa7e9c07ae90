"""Whether samples are copies of training images: how near the nearest one is, pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.evaluation.distances import distances
from trainers.evaluation.recogniser import looked_at, shrunk

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


def neighbours(samples: Tensor, train: Tensor, held_out: Tensor, rows: Tensor | None = None) -> Neighbours:
    """samples: (n, C, H, W) in [−1, 1]; train, held_out: bytes; rows: of train, all where none are given.

    They are looked at with 32 × 32 pixels.
    """
    known = _flat(looked_at(train, rows))
    found, nearest = _nearest(_flat(shrunk(samples)), known)
    if rows is not None:
        nearest = rows[nearest]
    if not len(held_out):
        return Neighbours(nearest, float(found.median()), None, None)
    usual, _ = _nearest(_flat(looked_at(held_out)), known)
    share = float((found < usual.quantile(QUANTILE)).float().mean())
    return Neighbours(nearest, float(found.median()), float(usual.median()), share)


def _flat(images: Tensor) -> Tensor:
    """(n, pixels), so that the distance of two is the root of their mean square difference."""
    flat = images.flatten(1)
    return flat / math.sqrt(flat.shape[1])


def _nearest(images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    parts = [part.min(dim=1) for part in distances(images, known)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

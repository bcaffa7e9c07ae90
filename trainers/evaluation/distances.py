"""How far drawn images are from real ones, by what an extractor saw of both.

Fréchet distance (Heusel et al. 2017), kernel distance (Bińkowski et al. 2018), Inception Score (Salimans et
al. 2016), precision and recall (Kynkäänniemi et al. 2019). They are FID and KID only where the extractor is
the Inception network that those are defined by; who calls them something else is `extractors.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

CONFIDENCE = 1.96  # standard errors to either side: 95 %
NEIGHBOURS = 3
AT_ONCE = 1024


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds between which the truth is with 95 % confidence."""

    mean: float
    low: float
    high: float


class _Seen(nn.Module):
    """Hands on features that were extracted already, where torchmetrics wants a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, drawn: Tensor) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½), NaN where a feature is. real: (n, D); drawn: (m, D)"""
    from torchmetrics.image.fid import FrechetInceptionDistance

    with _quiet():
        metric = FrechetInceptionDistance(feature=_Seen(real.shape[1]))
        metric.update(real.double(), real=True)
        metric.update(drawn.double(), real=False)
        return float(metric.compute().clamp(min=0))  # rounding may fall below; NaN stays NaN


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y | x) ‖ p(y)), over all images at once. logits: (n, K)"""
    from torchmetrics.image.inception import InceptionScore

    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # it shuffles, and the order decides how a sum is rounded
        metric = InceptionScore(feature=_Seen(logits.shape[1]), splits=1)
        metric.update(logits.double())
        return float(metric.compute()[0])


def _quiet() -> warnings.catch_warnings:
    """torchmetrics warns of memory, and of a spread over one split that nobody asks for."""
    return warnings.catch_warnings(action="ignore")


def kernel_distance(real: Tensor, drawn: Tensor) -> Interval:
    """The unbiased MMD² under (x·y / D + 1)³, over all images, with a jackknife interval.

    The subsets that KID is usually averaged over overlap, so that their spread says nothing of how sure the
    mean is. Leaving every image out once does, for both sides. real: (n, D); drawn: (m, D)
    """
    x, y = drawn.double(), real.double()
    m, n = len(x), len(y)
    own_x, own_y = _rows(x, x, apart=True), _rows(y, y, apart=True)
    xy, yx = _rows(x, y), _rows(y, x)
    inner_x, inner_y, between = own_x.sum(), own_y.sum(), xy.sum()
    mean = inner_x / (m * (m - 1)) + inner_y / (n * (n - 1)) - 2 * between / (m * n)
    if min(m, n) < 3:
        return Interval(float(mean), -math.inf, math.inf)
    without_x = (
        (inner_x - 2 * own_x) / ((m - 1) * (m - 2))
        + inner_y / (n * (n - 1))
        - 2 * (between - xy) / ((m - 1) * n)
    )
    without_y = (
        inner_x / (m * (m - 1))
        + (inner_y - 2 * own_y) / ((n - 1) * (n - 2))
        - 2 * (between - yx) / (m * (n - 1))
    )
    variance = sum(
        (len(each) - 1) / len(each) * (each - each.mean()).square().sum() for each in (without_x, without_y)
    )
    reach = CONFIDENCE * math.sqrt(float(variance))
    return Interval(float(mean), float(mean) - reach, float(mean) + reach)


def _rows(x: Tensor, y: Tensor, apart: bool = False) -> Tensor:
    """(n,) Σ_j k(x_i, y_j); apart: without those of an image and itself."""
    sums = torch.cat([((part @ y.T / x.shape[1] + 1) ** 3).sum(dim=1) for part in x.split(AT_ONCE)])
    return sums - (x.square().sum(dim=1) / x.shape[1] + 1) ** 3 if apart else sums


def precision_recall(real: Tensor, drawn: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of drawn images among the real ones, and of real images among the drawn.

    An image is among others where it is no farther from one of them than that one's k-th neighbour is.
    """
    return _covered(real, drawn, neighbours), _covered(drawn, real, neighbours)


def _covered(among: Tensor, images: Tensor, neighbours: int) -> float:
    k = min(neighbours, len(among) - 1)
    if k < 1:
        return math.nan
    # The nearest of all is the image itself.
    radius = torch.cat([d.kthvalue(k + 1, dim=1).values for d in distances(among, among)])
    inside = [(d <= radius[None]).any(dim=1) for d in distances(images, among)]
    return float(torch.cat(inside).float().mean())


def distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Euclidean distances, some rows at a time: (rows, len(y))"""
    exact = cast(Callable[..., Tensor], torch.cdist)
    for part in x.split(AT_ONCE):
        yield exact(part.float(), y.float(), compute_mode="donot_use_mm_for_euclid_dist")

"""Distances of features, against formulas that were written down by other means."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from trainers.evaluation.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)


def gaussian(count: int, width: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(count, width, generator=generator, dtype=torch.float64)


def test_the_frechet_distance_is_that_of_a_matrix_square_root() -> None:
    mixing = gaussian(5, 5, seed=2)
    real, drawn = gaussian(60, 5, seed=0), gaussian(40, 5, seed=1, mean=0.3) @ mixing
    one, other = np.cov(real.numpy(), rowvar=False), np.cov(drawn.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(one @ other).real
    apart = float((real.mean(0) - drawn.mean(0)).square().sum())
    expected = apart + np.trace(one) + np.trace(other) - 2 * np.trace(root)
    assert frechet_distance(real, drawn) == pytest.approx(float(expected), rel=1e-9)


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    # ‖μ − μ'‖² + Σ (σ − σ')², for independent coordinates
    real, drawn = gaussian(100_000, 3, seed=0), gaussian(100_000, 3, seed=1, mean=0.5, scale=2.0)
    assert frechet_distance(real, drawn) == pytest.approx(3 * (0.25 + 1.0), rel=0.02)


def test_images_are_at_no_distance_from_themselves_even_where_there_are_fewer_than_features() -> None:
    real = gaussian(6, 30, seed=0)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-4)
    assert kernel_distance(real, real).mean < 0  # unbiased: an image and its copy count on one side only
    assert precision_recall(real, real) == (1.0, 1.0)


def test_features_that_are_no_numbers_are_at_no_distance_at_all() -> None:
    drawn = gaussian(20, 5, seed=1)
    drawn[3, 2] = math.nan
    assert math.isnan(frechet_distance(gaussian(20, 5, seed=0), drawn))


def test_the_kernel_distance_is_torchmetrics_own_where_both_sides_are_as_many() -> None:
    real, drawn = gaussian(25, 4, seed=0), gaussian(25, 4, seed=1, mean=0.4)
    assert kernel_distance(real, drawn).mean == pytest.approx(float(poly_mmd(real, drawn)), rel=1e-9)


def test_the_kernel_distance_and_its_interval_are_what_leaving_each_image_out_by_hand_gives() -> None:
    real, drawn = gaussian(7, 3, seed=3), gaussian(5, 3, seed=4, mean=0.5)

    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    def mmd(x: Tensor, y: Tensor) -> float:
        inner = [
            sum(k(a, b) for a, b in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1)) for z in (x, y)
        ]
        return sum(inner) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))

    def variance(values: list[float]) -> float:
        n = len(values)
        return (n - 1) / n * sum((value - sum(values) / n) ** 2 for value in values)

    def without(x: Tensor, i: int) -> Tensor:
        return torch.cat([x[:i], x[i + 1 :]])

    error = math.sqrt(
        variance([mmd(without(drawn, i), real) for i in range(5)])
        + variance([mmd(drawn, without(real, i)) for i in range(7)])
    )
    found = kernel_distance(real, drawn)
    assert found.mean == pytest.approx(mmd(drawn, real), rel=1e-9)
    assert (found.high - found.mean) == pytest.approx(1.96 * error, rel=1e-9)
    assert (found.mean - found.low) == pytest.approx(1.96 * error, rel=1e-9)


def test_nineteen_intervals_of_twenty_hold_the_truth() -> None:
    """k(x, y) = (xy + 1)³ in one dimension: E k = 1 + 3 μμ' + 3 E x² E y² + E x³ E y³."""
    shift = 0.5
    square, cube = 1 + shift**2, 3 * shift + shift**3  # of a normal variable moved by `shift`
    truth = (
        (1 + 3 * shift**2 + 3 * square**2 + cube**2)  # drawn and drawn
        + (1 + 3)  # real and real
        - 2 * (1 + 3 * square)
    )
    inside = 0
    for seed in range(200):
        found = kernel_distance(gaussian(200, 1, 2 * seed), gaussian(200, 1, 2 * seed + 1, mean=shift))
        inside += found.low <= truth <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_the_inception_score_is_one_where_nothing_is_told_apart_and_the_number_of_classes_at_best() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what torchmetrics mutters does not reach the user
        assert inception_score(torch.zeros(8, 4)) == pytest.approx(1)
        assert inception_score(50 * torch.eye(4).repeat(3, 1)) == pytest.approx(4)
    logits = gaussian(9, 3, seed=5)
    p = torch.softmax(logits, 1).numpy()
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert inception_score(logits) == pytest.approx(float(expected), rel=1e-6)


def test_the_score_of_the_same_images_is_the_same_to_the_bit() -> None:
    logits, found = gaussian(199, 10, seed=5, scale=3), set()
    for seed in range(8):
        torch.manual_seed(seed)  # whatever was drawn before
        found.add(inception_score(logits))
    assert len(found) == 1


def test_the_score_leaves_the_global_stream_of_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    inception_score(torch.zeros(8, 4))
    assert torch.equal(torch.rand(1), expected)


def test_precision_falls_with_samples_outside_and_recall_with_images_never_drawn() -> None:
    real = torch.cat([gaussian(50, 2, seed=0), gaussian(50, 2, seed=1, mean=100)])
    one_mode = gaussian(60, 2, seed=2)
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.9
    assert 0.4 < recall <= 0.5  # the other half is never drawn
    nowhere = torch.cat([one_mode[:30], gaussian(30, 2, seed=3, mean=-500)])
    assert precision_recall(real, nowhere)[0] == pytest.approx(0.5, abs=0.05)


def test_precision_is_counted_by_hand_alike() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0]])
    drawn = torch.tensor([[1.9], [4.5], [-0.5], [6.0]])
    # radius to the nearest other: 1, 1, 2 → [−1, 1], [0, 2], [1, 5]
    assert precision_recall(real, drawn, neighbours=1)[0] == pytest.approx(3 / 4)

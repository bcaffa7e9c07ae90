"""Training objectives."""

from __future__ import annotations

from torch import Tensor


def l_simple(predicted: Tensor, target: Tensor) -> Tensor:
    """‖prediction − target‖², averaged over all but the batch (Ho et al. 2020, eq. 14). (B, …) → (B,)"""
    return (predicted - target).square().flatten(1).mean(dim=1)

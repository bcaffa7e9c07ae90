"""Training objectives."""

from __future__ import annotations

from torch import Tensor


def without_variance(predicted: Tensor, target: Tensor, channels: int) -> Tensor:
    """Leaves a learned variance out, which doubles the channels of a prediction.

    predicted: (B, 2C, H, W), or patches (B, K, p²·2C); or already of the target's shape.
    """
    if predicted.shape == target.shape:
        return predicted
    if predicted.dim() == 4:
        return predicted[:, :channels]
    batch, kept, _ = predicted.shape
    return predicted.reshape(batch, kept, -1, 2 * channels)[..., :channels].flatten(2)


def l_simple(predicted: Tensor, target: Tensor) -> Tensor:
    """‖prediction − target‖², averaged over all but the batch (Ho et al. 2020, eq. 14). (B, …) → (B,)"""
    return (predicted - target).square().flatten(1).mean(dim=1)

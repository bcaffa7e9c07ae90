"""Whether a sample shows the condition that it was told: the condition is drawn again, from the sample.

    canny          F1 of the edges, with the tolerance of Martin et al. 2004: 0.75 % of the diagonal
    segmentation   mean intersection over union of the colours that were told
    depth          root mean square error, both maps from 0 to 1, after the best scale and shift

All but canny need the model that draws the condition; where maps came with the dataset, it is to be named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.conditions import maker
from trainers.data import as_bytes

TOLERANCE = 0.0075


def condition_fidelity(
    condition: Mapping[str, Any], samples: Tensor, told: Sequence[Tensor]
) -> dict[str, float] | None:
    """The figures of a condition by name; None where nothing here can draw it from a sample.

    samples: (n, C, H, W); told: n conditions (C', H, W), in [−1, 1].
    """
    measure = MEASURES.get(condition["name"])
    if measure is None or (condition["source"] != "canny" and "folder" not in condition):
        return None
    draw = maker(condition)
    found = [torch.from_numpy(np.ascontiguousarray(draw(as_bytes(x).numpy()))) for x in samples]
    return measure(torch.stack([as_bytes(x) for x in told]), torch.stack(found))


def edge_f1(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """Of all images together. wanted, found: (n, 1, H, W) bytes; an edge is white."""
    there, drawn = (wanted > 127).float(), (found > 127).float()
    near_there, near_drawn = (_spread(x) for x in (there, drawn))
    precision = float((drawn * near_there).sum() / drawn.sum().clamp(min=1))
    recall = float((there * near_drawn).sum() / there.sum().clamp(min=1))
    both = precision + recall
    return {"f1": 2 * precision * recall / both if both else 0.0, "precision": precision, "recall": recall}


def _spread(edges: Tensor) -> Tensor:
    reach = round(TOLERANCE * math.hypot(*edges.shape[2:]))  # none below 48 pixels, 3 at 256
    return F.max_pool2d(edges, 2 * reach + 1, stride=1, padding=reach)


def mean_iou(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """Over the colours that were told. wanted, found: (n, 3, H, W) bytes"""
    told, drawn = (_colours(x) for x in (wanted, found))
    shares = []
    for colour in told.unique():
        one, other = told == colour, drawn == colour
        shares.append(float((one & other).sum() / (one | other).sum()))
    return {"miou": sum(shares) / len(shares), "accuracy": float((told == drawn).float().mean())}


def _colours(images: Tensor) -> Tensor:
    """(n, 3, H, W) bytes → (n, H, W) one number a colour"""
    red, green, blue = images.long().unbind(dim=1)
    return red << 16 | green << 8 | blue


def depth_error(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """wanted, found: (n, 1, H, W) bytes. The best scale and shift of each image are no error."""
    y, x = (each.flatten(1).double() / 255 for each in (wanted, found))
    centred_x, centred_y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    spread = centred_x.square().sum(dim=1, keepdim=True)
    scale = (centred_x * centred_y).sum(dim=1, keepdim=True) / spread.clamp(min=1e-12)
    error = scale.clamp(min=0) * centred_x - centred_y  # a map turned over is no depth
    return {"rmse": float(error.square().mean(dim=1).sqrt().mean())}


MEASURES: dict[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "canny": edge_f1,
    "segmentation": mean_iou,
    "depth": depth_error,
}

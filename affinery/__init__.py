"""Affinery: one frozen diffusion backbone that keeps learning.

import affinery
model = affinery.load("bundle/")                      # verified, every task on one backbone
images = affinery.draw(model, "digits", "7", n=4)     # (4, C, H, W) in [−1, 1]

client = affinery.Client.init("my-workspace")         # all verbs of the service: docs/guides/python.md
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from affinery.composed import ComposedModel

__all__ = ["Client", "__version__", "draw", "load"]


def __getattr__(name: str) -> Any:
    """Client is the application's, of which the core knows nothing until it is asked for (decision 17)."""
    if name == "Client":
        return import_module("affinery_app.client").Client
    raise AttributeError(f"module 'affinery' has no attribute {name!r}")


def load(
    folder: str | Path, backbone: str | Path | None = None, signed_by: str | Path | None = None
) -> ComposedModel:
    """The composed model of a bundle. Raises BundleInvalid where a byte differs from its manifest.

    backbone: its file, for a bundle that only names it. signed_by: the public key of its signature (PEM).
    """
    from affinery.bundle import load_bundle

    given = [None if path is None else Path(path) for path in (backbone, signed_by)]
    return load_bundle(Path(folder), *given)


def draw(
    model: ComposedModel,
    task: str,
    label: str | int,
    n: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    prompt: str = "",
    condition: Tensor | None = None,
) -> Tensor:
    """Draws n images of one class of one task. → (n, C, H, W) in [−1, 1]. Raises UnknownName.

    prompt: the caption, for a backbone that takes captions. condition: (C', H, W) in [−1, 1], what a task
    with a spatial condition is told. Raises ConfigInvalid where one is missing or not asked for.
    """
    from affinery.diffusion.sampling import Draw, default_settings, sample

    row = model.task(task).row(label)
    return sample(
        model,
        [Draw(task, row, seed + i, prompt, condition) for i in range(n)],
        default_settings(model, steps, guidance),
    )

"""DDIM sampling (Song et al. 2020), classifier-free guidance (Ho & Salimans 2022), tasks mixed in a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from affinery.composed import ComposedModel
from affinery.diffusion.schedule import scheduler
from affinery.errors import ConfigInvalid

SEED_LIMIT = 2**63


@dataclass(frozen=True)
class Draw:
    """One image to draw: a task (None is the untouched backbone), a row of the class table, a seed."""

    task: str | None
    row: int
    seed: int


@dataclass(frozen=True)
class SamplerSettings:
    """steps: DDIM steps; guidance: 1 is none, the prediction is ŷ = u + guidance · (c − u)."""

    steps: int = 50
    guidance: float = 2.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigInvalid("steps", f"{self.steps} is less than 1.")
        if not 0 <= self.guidance < math.inf:
            raise ConfigInvalid("guidance", f"{self.guidance} is not zero or more.")


def starting_noise(model: ComposedModel, seeds: Sequence[int]) -> Tensor:
    """(B, C, H, W): each image's noise comes from its own seed, so it does not depend on the batch."""
    for seed in seeds:
        if not 0 <= seed < SEED_LIMIT:
            raise ConfigInvalid("seed", f"{seed} is not a number from 0 to 2^63 − 1.")
    shape = (model.spec.channels, model.spec.image_size, model.spec.image_size)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample(
    model: ComposedModel,
    draws: Sequence[Draw],
    settings: SamplerSettings,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draws one batch. → (B, C, H, W) in [−1, 1], on the CPU, in the order asked for.

    Under guidance every sample stands beside its unconditional twin of the same task, so that a batch in
    blocks of tasks stays one in blocks. Raises ConfigInvalid and UnknownName.
    """
    if not draws:
        raise ConfigInvalid("draws", "there is nothing to draw.")
    steps = scheduler(model.spec)
    if settings.steps > steps.config.num_train_timesteps:
        most = steps.config.num_train_timesteps
        raise ConfigInvalid("steps", f"{settings.steps} is more than the {most} that the backbone knows.")
    device = model.backbone.class_table.device
    guided = settings.guidance != 1.0
    twins = 2 if guided else 1
    rows = torch.tensor([draw.row for draw in draws], device=device).repeat_interleave(twins)
    if guided:
        rows[1::2] = model.null_row
    plan = model.plan([draw.task for draw in draws for _ in range(twins)])
    steps.set_timesteps(settings.steps)
    x = starting_noise(model, [draw.seed for draw in draws]).to(device) * steps.init_noise_sigma
    channels = model.spec.channels
    for done, t in enumerate(steps.timesteps):
        both = x.repeat_interleave(twins, dim=0)
        times = torch.full((len(both),), int(t), dtype=torch.long, device=device)
        predicted = model.denoise(both, times, rows, plan)
        predicted = predicted[:, :channels]  # a learned variance is not used by DDIM
        if guided:
            conditional, unconditional = predicted[0::2], predicted[1::2]
            predicted = unconditional + settings.guidance * (conditional - unconditional)
        x = steps.step(predicted, int(t), x).prev_sample
        if on_step is not None:
            on_step(done + 1, settings.steps)
    images: Tensor = x.clamp(-1, 1).cpu()
    return images


def default_settings(
    model: ComposedModel, steps: int | None = None, guidance: float | None = None
) -> SamplerSettings:
    """The settings that the backbone's spec recommends, except those given."""
    advised = model.spec.defaults.get("sampler", {})
    return SamplerSettings(
        int(advised.get("steps", 50)) if steps is None else steps,
        float(advised.get("guidance", 2.0)) if guidance is None else guidance,
    )

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


DECODED_AT_ONCE = 8


@dataclass(frozen=True)
class Draw:
    """One image to draw: a task (None is the untouched backbone), a row of the class table, a seed.

    prompt: its caption, for a text-conditional backbone. condition: what a task with a condition is told,
    (C, H, W) in [−1, 1].
    """

    task: str | None
    row: int
    seed: int
    prompt: str = ""
    condition: Tensor | None = None


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


def starting_noise(model: ComposedModel, seeds: Sequence[int], image_size: int | None = None) -> Tensor:
    """(B, C, H, W): each image's noise comes from its own seed, so it does not depend on the batch."""
    for seed in seeds:
        if not 0 <= seed < SEED_LIMIT:
            raise ConfigInvalid("seed", f"{seed} is not a number from 0 to 2^63 − 1.")
    shape = model.spec.latent_shape(image_size)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample(
    model: ComposedModel,
    draws: Sequence[Draw],
    settings: SamplerSettings,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draws one batch. → (B, channels, H, W) in [−1, 1], on the CPU, in the order asked for.

    Under guidance every sample stands beside its unconditional twin of the same task, so that a batch in
    blocks of tasks stays one in blocks. The twin has no class and no caption, but the same condition.
    Raises ConfigInvalid and UnknownName.
    """
    size = _common_size(model, draws)
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
    text, hint = _captions(model, draws, guided), _hint(model, draws, twins)
    steps.set_timesteps(settings.steps)
    x = starting_noise(model, [draw.seed for draw in draws], size).to(device) * steps.init_noise_sigma
    channels = x.shape[1]
    for done, t in enumerate(steps.timesteps):
        both = x.repeat_interleave(twins, dim=0)
        times = torch.full((len(both),), int(t), dtype=torch.long, device=device)
        predicted = model.denoise(both, times, rows, plan, text=text, hint=hint)
        predicted = predicted[:, :channels]  # a learned variance is not used by DDIM
        if guided:
            predicted = _guided(model, predicted, settings.guidance)
        x = steps.step(predicted, int(t), x).prev_sample
        if on_step is not None:
            on_step(done + 1, settings.steps)
    decoded = [model.backbone.decode(part).cpu() for part in x.split(DECODED_AT_ONCE)]
    return torch.cat(decoded).contiguous()  # a VAE may leave the channels last


def _common_size(model: ComposedModel, draws: Sequence[Draw]) -> int:
    """The side of the images, in pixels: one batch has one."""
    if not draws:
        raise ConfigInvalid("draws", "there is nothing to draw.")
    by_size = {model.image_size(draw.task): draw.task for draw in draws}
    if len(by_size) > 1:
        listing = " and ".join(f"{task!r} ({size} pixels)" for size, task in sorted(by_size.items()))
        raise ConfigInvalid("draws", f"{listing} draw images of several sizes; draw them in batches each.")
    return next(iter(by_size))


def _captions(model: ComposedModel, draws: Sequence[Draw], guided: bool) -> Tensor | None:
    """(B or 2·B, L, E): each sample's caption, under guidance beside the empty one of its twin."""
    prompts = [draw.prompt for draw in draws]
    if not any(prompts):
        return None  # the backbone's own: the empty caption
    text = model.backbone.encode_text(prompts)
    if not guided:
        return text
    return torch.stack([text, model.backbone.encode_text([""]).expand_as(text)], dim=1).flatten(0, 1)


def _hint(model: ComposedModel, draws: Sequence[Draw], twins: int) -> Tensor | None:
    """(twins · B, *hint_shape): the same at every step, so computed once."""
    for draw in draws:
        if draw.condition is not None and (draw.task is None or model.task(draw.task).stem is None):
            raise ConfigInvalid("condition", f"the task {draw.task!r} is told none.")
    hint = model.hint([draw.task for draw in draws], [draw.condition for draw in draws])
    return None if hint is None else hint.repeat_interleave(twins, dim=0)


def _guided(model: ComposedModel, predicted: Tensor, guidance: float) -> Tensor:
    """ŷ = u + guidance · (c − u) in the channels that the backbone guides, c in the others."""
    conditional, unconditional = predicted[0::2], predicted[1::2]
    mixed = unconditional + guidance * (conditional - unconditional)
    count = model.backbone.guided_channels
    if count == mixed.shape[1]:
        return mixed
    return torch.cat([mixed[:, :count], conditional[:, count:]], dim=1)


def default_settings(
    model: ComposedModel, steps: int | None = None, guidance: float | None = None
) -> SamplerSettings:
    """The settings that the backbone's spec recommends, except those given."""
    advised = model.spec.defaults.get("sampler", {})
    return SamplerSettings(
        int(advised.get("steps", 50)) if steps is None else steps,
        float(advised.get("guidance", 2.0)) if guidance is None else guidance,
    )

"""The noise schedule q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I) of a backbone, as diffusers defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from affinery.backbones.contract import BackboneSpec
from affinery.importing import IMPORTING

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


def scheduler(spec: BackboneSpec) -> DDIMScheduler:
    """A fresh DDIM scheduler (Song et al. 2020) for this backbone's schedule and prediction type."""
    with IMPORTING:
        from diffusers import DDIMScheduler

    settings: dict[str, Any] = {"timestep_spacing": "trailing", "clip_sample": True} | spec.schedule
    return DDIMScheduler(prediction_type=spec.prediction, **settings)


class NoiseSchedule:
    """√ᾱ_t and √(1 − ᾱ_t) by time step, and the targets that follow from them."""

    def __init__(self, spec: BackboneSpec) -> None:
        alphas = scheduler(spec).alphas_cumprod.double()
        self.prediction = spec.prediction
        self.signal = alphas.sqrt().float()  # (steps,)
        self.noise = (1 - alphas).sqrt().float()  # (steps,)

    @property
    def steps(self) -> int:
        return len(self.signal)

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x0, noise: (B, C, H, W); t: (B,) → x_t, of the same shape."""
        signal, own = self._at(t)
        return signal * x0 + own * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is to predict: ε, v = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans & Ho 2022), or x_0."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        signal, own = self._at(t)
        return signal * noise - own * x0

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t), (B, 1, 1, 1) each."""
        if self.signal.device != t.device:  # once, so that later steps wait for nothing
            self.signal, self.noise = self.signal.to(t.device), self.noise.to(t.device)
        return self.signal[t][:, None, None, None], self.noise[t][:, None, None, None]


def stratified_steps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """(count,) time steps, one from each of `count` equal strata of [0, steps), in random order.

    Each step is uniform on its own, so the expected loss is that of independent draws, at less variance.
    """
    strata = torch.randperm(count, generator=generator)
    offsets = torch.rand(count, generator=generator)
    return ((strata + offsets) / count * steps).long().clamp_(max=steps - 1)

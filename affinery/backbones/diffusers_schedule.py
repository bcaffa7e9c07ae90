"""A diffusers scheduler's config as the noise schedule of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from affinery.backbones.contract import PREDICTIONS, SCHEDULE_CHOICES, SCHEDULE_RANGES
from affinery.backbones.network_config import arguments
from affinery.errors import ConfigInvalid
from affinery.importing import IMPORTING

# Solvers of one and the same discrete, variance-preserving diffusion: their schedules say all that matters.
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
)
UNSUPPORTED = ("trained_betas", "thresholding", "use_flow_sigmas")


def schedule_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """→ the spec's schedule and its prediction. What the config leaves out is its class's default.

    Raises ConfigInvalid for a scheduler, or a setting of one, that the DDIM sampler cannot follow.
    """
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ConfigInvalid("scheduler", f"{name!r} is not supported; supported: {', '.join(SCHEDULERS)}.")
    with IMPORTING:
        import diffusers

        known = arguments(getattr(diffusers, name))
    settings = known | {key: value for key, value in config.items() if key in known}
    for key in UNSUPPORTED:
        if settings.get(key):
            raise ConfigInvalid("scheduler", f"{key} = {settings[key]!r} is not supported.")
    if settings["beta_schedule"] not in SCHEDULE_CHOICES["beta_schedule"]:
        listing = ", ".join(map(str, SCHEDULE_CHOICES["beta_schedule"]))
        raise ConfigInvalid(
            "scheduler",
            f"beta_schedule = {settings['beta_schedule']!r} is not supported; supported: {listing}.",
        )
    if settings["prediction_type"] not in PREDICTIONS:
        raise ConfigInvalid(
            "scheduler", f"prediction_type = {settings['prediction_type']!r} is not supported."
        )
    found = {key: settings[key] for key in (*SCHEDULE_CHOICES, *SCHEDULE_RANGES) if key in settings}
    found.setdefault("clip_sample", False)
    return found, settings["prediction_type"]

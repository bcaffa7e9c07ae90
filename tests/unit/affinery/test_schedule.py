"""Noise schedules: what is added, what is to be predicted, and that the one follows from the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from affinery.backbones.contract import PREDICTIONS, BackboneSpec
from affinery.diffusion.objective import l_simple
from affinery.diffusion.schedule import NoiseSchedule, scheduler, stratified_steps
from tests import tiny_models as tiny

SCHEDULES: list[dict[str, object]] = [
    {},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000},
    {"beta_schedule": "scaled_linear", "num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.1},
]


def drawn(schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """x0, t, noise at first, middle and last steps."""
    torch.manual_seed(0)
    t = torch.tensor([0, 1, schedule.steps // 2, schedule.steps - 1])
    return torch.randn(4, 1, 8, 8), t, torch.randn(4, 1, 8, 8)


def of(prediction: str, settings: dict[str, object]) -> tuple[BackboneSpec, NoiseSchedule]:
    spec = tiny.spec(prediction=prediction, schedule=settings)
    return spec, NoiseSchedule(spec)


@pytest.mark.parametrize("settings", SCHEDULES)
def test_signal_and_noise_have_the_variance_of_the_data_at_every_step(settings: dict[str, object]) -> None:
    _, schedule = of("epsilon", settings)
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(schedule.steps))
    assert bool((schedule.signal.diff() < 0).all())


@pytest.mark.parametrize("settings", SCHEDULES)
def test_noise_is_added_as_diffusers_adds_it(settings: dict[str, object]) -> None:
    spec, schedule = of("epsilon", settings)
    x0, t, noise = drawn(schedule)
    torch.testing.assert_close(schedule.diffuse(x0, t, noise), scheduler(spec).add_noise(x0, noise, t))


@pytest.mark.parametrize("settings", SCHEDULES)
def test_the_velocity_is_that_of_diffusers(settings: dict[str, object]) -> None:
    from diffusers import DDPMScheduler

    _, schedule = of("v_prediction", settings)
    x0, t, noise = drawn(schedule)
    theirs = DDPMScheduler(prediction_type="v_prediction", **settings).get_velocity(x0, noise, t)
    torch.testing.assert_close(schedule.target(x0, t, noise), theirs)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("settings", SCHEDULES)
def test_image_and_noise_come_back_from_the_target(prediction: str, settings: dict[str, object]) -> None:
    _, schedule = of(prediction, settings)
    x0, t, noise = drawn(schedule)
    x_t, target = schedule.diffuse(x0, t, noise), schedule.target(x0, t, noise)
    signal, sigma = (table[t][:, None, None, None] for table in (schedule.signal, schedule.noise))
    if prediction == "v_prediction":
        torch.testing.assert_close(signal * x_t - sigma * target, x0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sigma * x_t + signal * target, noise, rtol=1e-4, atol=1e-4)
    elif prediction == "epsilon":
        torch.testing.assert_close(x_t - sigma * target, signal * x0, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(target, x0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_ddim_step_on_the_true_target_lands_on_the_image(prediction: str) -> None:
    """From the middle straight to the end: the sampler reads the prediction as training meant it."""
    spec, schedule = of(prediction, {"num_train_timesteps": 100, "clip_sample": False})
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    steps = scheduler(spec)
    steps.set_timesteps(1)
    t = int(steps.timesteps[0])
    times = torch.full((2,), t)
    step = steps.step(schedule.target(x0, times, noise), t, schedule.diffuse(x0, times, noise))
    torch.testing.assert_close(step.pred_original_sample, x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_time_steps_are_one_from_each_stratum_in_random_order(count: int) -> None:
    t = stratified_steps(count, 1000, torch.Generator().manual_seed(0))
    strata = (t.sort().values * count) // 1000
    assert bool((strata - torch.arange(count)).abs().max() <= 1)
    assert 0 <= int(t.min()) <= int(t.max()) < 1000
    if count > 1:
        assert t.tolist() != sorted(t.tolist())


def test_time_steps_are_uniform_in_the_long_run() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.cat([stratified_steps(3, 10, generator) for _ in range(4000)])
    shares = torch.bincount(t, minlength=10) / len(t)
    assert float((shares - 0.1).abs().max()) < 0.01


def test_the_loss_is_the_mean_square_of_each_sample() -> None:
    predicted, target = torch.ones(3, 2, 2, 2), torch.zeros(3, 2, 2, 2)
    target[1] = 3
    assert l_simple(predicted, target).tolist() == [1, 4, 1]

"""Drawing: the same seeds give the same images, whatever stands beside them in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from affinery.adapters.routing import Plan
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, default_settings, sample, starting_noise
from affinery.errors import ConfigInvalid, UnknownName
from tests import tiny_models as tiny
from tests import tiny_unets

SETTINGS = SamplerSettings(steps=4, guidance=2.0)


@pytest.fixture(scope="module")
def model() -> ComposedModel:
    return tiny.composed(*tiny.two_tasks())


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_same_draws_give_the_same_images_to_the_bit(model: ComposedModel) -> None:
    draws = [Draw("digits", 4, 1), Draw("letters", 7, 2), Draw(None, 0, 3)]
    first = sample(model, draws, SETTINGS)
    assert torch.equal(first, sample(model, draws, SETTINGS))
    assert first.shape == (3, 1, 8, 8)
    assert float(first.abs().max()) <= 1
    assert not torch.equal(first[0], first[1])


def test_an_image_depends_on_its_own_seed_and_not_on_the_batch(model: ComposedModel) -> None:
    draws = [Draw("digits", 4, 1), Draw("letters", 7, 2), Draw(None, 0, 3), Draw("digits", 5, 4)]
    together = sample(model, draws, SETTINGS)
    for i, draw in enumerate(draws):
        close(together[i], sample(model, [draw], SETTINGS)[0])
    close(sample(model, draws[::-1], SETTINGS).flip(0), together)


def test_starting_noise_is_bit_equal_whatever_the_batch(model: ComposedModel) -> None:
    assert torch.equal(starting_noise(model, [5, 6, 7])[1], starting_noise(model, [6])[0])


def test_drawing_leaves_the_global_random_stream_alone(model: ComposedModel) -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    sample(model, [Draw("digits", 4, 1)], SETTINGS)
    assert torch.equal(torch.randn(3), expected)


class Counting(ComposedModel):
    """Notes each pass's rows."""

    def denoise(self, x: Tensor, t: Tensor, rows: Tensor, plan: Plan, *args: Any, **kwargs: Any) -> Tensor:
        self.seen: list[list[int]] = [*getattr(self, "seen", []), rows.tolist()]
        return super().denoise(x, t, rows, plan, *args, **kwargs)


@pytest.fixture
def counting() -> Counting:
    counted = Counting(tiny.backbone(), tiny.FINGERPRINT)
    for adapter in tiny.two_tasks():
        counted.load(adapter)
    return counted


def test_guidance_of_one_computes_no_unconditional_twin(counting: Counting) -> None:
    sample(counting, [Draw("digits", 4, 1), Draw("letters", 7, 2)], SamplerSettings(3, 1.0))
    assert counting.seen == [[4, 7]] * 3


def test_every_other_guidance_pairs_each_sample_with_the_null_row(counting: Counting) -> None:
    sample(counting, [Draw("digits", 4, 1), Draw("letters", 7, 2)], SamplerSettings(3, 1.5))
    assert counting.seen == [[4, 3, 7, 3]] * 3


def test_guidance_of_zero_draws_without_the_class(model: ComposedModel) -> None:
    asked = sample(model, [Draw("digits", 4, 1)], SamplerSettings(4, 0.0))
    close(asked, sample(model, [Draw("digits", model.null_row, 1)], SamplerSettings(4, 1.0)))


def test_guidance_barely_above_one_is_continuous(model: ComposedModel) -> None:
    one = sample(model, [Draw("digits", 4, 1)], SamplerSettings(4, 1.0))
    close(sample(model, [Draw("digits", 4, 1)], SamplerSettings(4, 1.000001)), one)


def test_a_learned_variance_is_left_out_of_the_image() -> None:
    config = {"width": 16, "depth": 1, "heads": 2, "patch": 4, "learn_sigma": True}
    model = tiny.composed(base=tiny.backbone(config=config))
    assert sample(model, [Draw(None, 0, 1)], SETTINGS).shape == (1, 1, 8, 8)


def test_steps_are_reported_one_by_one(model: ComposedModel) -> None:
    told: list[tuple[int, int]] = []
    sample(model, [Draw("digits", 4, 1)], SETTINGS, lambda done, of: told.append((done, of)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(ConfigInvalid, match="steps"):
        SamplerSettings(steps=steps)


@pytest.mark.parametrize("guidance", [-0.1, float("nan"), float("inf")])
def test_guidance_that_is_no_number_from_zero_up_is_refused(guidance: float) -> None:
    with pytest.raises(ConfigInvalid, match="guidance"):
        SamplerSettings(guidance=guidance)


def test_more_steps_than_the_backbone_knows_are_refused(model: ComposedModel) -> None:
    with pytest.raises(ConfigInvalid, match="1001 is more than the 1000"):
        sample(model, [Draw("digits", 4, 1)], SamplerSettings(steps=1001))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80])
def test_seeds_out_of_range_are_refused(seed: int, model: ComposedModel) -> None:
    with pytest.raises(ConfigInvalid, match="seed"):
        sample(model, [Draw("digits", 4, seed)], SETTINGS)


def test_an_unknown_task_and_an_empty_batch_are_refused(model: ComposedModel) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'digits'"):
        sample(model, [Draw("digit", 4, 1)], SETTINGS)
    with pytest.raises(ConfigInvalid, match="nothing to draw"):
        sample(model, [], SETTINGS)


def test_the_backbones_own_settings_hold_where_none_are_given(model: ComposedModel) -> None:
    assert default_settings(model) == SamplerSettings(5, 2.0)
    assert default_settings(model, steps=7, guidance=0.0) == SamplerSettings(7, 0.0)
    bare = tiny.composed(base=tiny.backbone(defaults={}))
    assert default_settings(bare) == SamplerSettings(50, 2.0)


@pytest.fixture(scope="module")
def told() -> ComposedModel:
    """A text U-Net with a task that is told edges and one of classes."""
    base = tiny_unets.built(tiny_unets.text_spec())
    edges = tiny.adapter(tiny.meta("edges", (4, 5), condition={"name": "canny", "channels": 1}), 1, base)
    classes = tiny.adapter(tiny.meta("digits", (5, 7)), 2, tiny_unets.built(tiny_unets.text_spec()))
    return tiny.composed(edges, classes, base=tiny_unets.built(tiny_unets.text_spec()))


def picture(seed: int) -> Tensor:
    return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_condition_and_a_prompt_change_what_is_drawn(told: ComposedModel) -> None:
    plain = sample(told, [Draw("edges", 4, 1, condition=picture(1))], SETTINGS)
    for other in (Draw("edges", 4, 1, condition=picture(2)), Draw("edges", 4, 1, "abc ab", picture(1))):
        assert (sample(told, [other], SETTINGS) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_conditions_captions_and_classes_are_drawn_in_one_batch_as_alone(
    told: ComposedModel, guidance: float
) -> None:
    settings = SamplerSettings(3, guidance)
    draws = [
        Draw("digits", 6, 1, "abc"),
        Draw("edges", 4, 2, condition=picture(1)),
        Draw(None, 1, 3, "ab"),
        Draw("edges", 4, 4, "ab", picture(2)),
    ]
    together = sample(told, draws, settings)
    for i, draw in enumerate(draws):
        close(together[i], sample(told, [draw], settings)[0])


def test_a_condition_that_a_task_is_not_told_is_refused(told: ComposedModel) -> None:
    for task in ("digits", None):
        with pytest.raises(ConfigInvalid, match="is told none"):
            sample(told, [Draw(task, 5, 1, condition=picture(1))], SETTINGS)


def test_a_prompt_for_a_backbone_of_classes_is_refused(model: ComposedModel) -> None:
    with pytest.raises(ConfigInvalid, match="no text encoder"):
        sample(model, [Draw("digits", 4, 1, "a coat")], SETTINGS)


def test_a_latent_backbone_draws_decoded_images() -> None:
    spec = tiny_unets.latent_spec()
    model = tiny.composed(base=tiny_unets.built(spec))
    drawn = sample(model, [Draw(None, 0, seed) for seed in range(9)], SamplerSettings(2, 1.0))
    assert drawn.shape == (9, 3, 16, 16)
    close(drawn[8], sample(model, [Draw(None, 0, 8)], SamplerSettings(2, 1.0))[0])


def test_a_task_of_another_resolution_is_drawn_in_its_own_size() -> None:
    large = tiny.adapter(tiny.meta("large", (4, 6), image_size=16))
    model = tiny.composed(large, tiny.adapter(tiny.meta("small", (6, 8))))
    assert sample(model, [Draw("large", 4, 1)], SETTINGS).shape == (1, 1, 16, 16)
    assert sample(model, [Draw("small", 6, 1)], SETTINGS).shape == (1, 1, 8, 8)
    with pytest.raises(ConfigInvalid, match=r"'small' \(8 pixels\) and 'large' \(16 pixels\)"):
        sample(model, [Draw("large", 4, 1), Draw("small", 6, 1)], SETTINGS)


def test_guidance_leaves_the_channels_alone_that_the_profile_does_not_guide() -> None:
    """The official DiT guides three of four latent channels, the fourth is the conditional prediction."""
    base = tiny.backbone(channels=4)
    model = tiny.composed(tiny.adapter(tiny.meta(), base=tiny.backbone(channels=4)), base=base)
    assert base.guided_channels == 3
    one, strong = (
        sample(model, [Draw("digits", 4, 1)], SamplerSettings(1, guidance)) for guidance in (1.0, 3.0)
    )
    close(one[:, 3], strong[:, 3])
    assert not torch.allclose(one[:, :3], strong[:, :3], atol=1e-3)

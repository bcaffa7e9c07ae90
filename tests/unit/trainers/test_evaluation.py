"""Recognition: a classifier of the real images tells plain things apart, and says so by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from registry.metrics import numbers
from tests import tiny_models as tiny
from tests.tiny_clip import save_clip
from tests.tiny_conditions import save_depth, save_segmentation
from trainers.conditions import condition_record, maker, published
from trainers.data import Images, Split
from trainers.errors import SamplesNotNumbers
from trainers.evaluation import samples as drawing
from trainers.evaluation.judging import Judgement, Measuring, judge
from trainers.evaluation.recogniser import (
    Recogniser,
    looked_at,
    recognised,
    recognition,
    shifted,
    train_recogniser,
)


def shades(count: int, classes: int, seed: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    """(n, 1, H, W) bytes: each class a grey of its own, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    base = labels.float()[:, None, None, None] * 255 / max(1, classes - 1)
    noise = 10 * torch.randn(count, 1, size, size, generator=generator)
    return (base + noise).clamp(0, 255).byte(), labels


def unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    images, labels = shades(60, 3)
    return train_recogniser(unit(images), labels, 3, steps=60)


def test_plain_classes_are_told_apart(recogniser: Recogniser) -> None:
    images, labels = shades(30, 3, seed=1)
    assert torch.equal(recognised(recogniser, unit(images), batch=7), labels)


def test_recognition_is_counted_by_class(recogniser: Recogniser) -> None:
    samples, asked = shades(6, 3)
    samples[2::3] = samples[0]  # what was asked for as class 2 was drawn as class 0
    real, real_labels = shades(9, 3, seed=2)
    found = recognition(recogniser, unit(samples), asked, unit(real), real_labels, 3)
    assert found.by_class == (1.0, 1.0, 0.0)
    assert found.share == pytest.approx(2 / 3)
    assert (found.real_accuracy, found.samples, found.real_images) == (1.0, 6, 9)


def test_the_same_seed_trains_the_same_classifier_and_leaves_the_global_stream_alone() -> None:
    images, labels = shades(12, 2)
    torch.manual_seed(7)
    expected = torch.randn(2)
    torch.manual_seed(7)
    one, two = (train_recogniser(unit(images), labels, 2, steps=3, seed=5) for _ in range(2))
    assert tiny.digests(one) == tiny.digests(two)
    assert torch.equal(torch.randn(2), expected)
    other = train_recogniser(unit(images), labels, 2, steps=3, seed=6)
    assert tiny.digests(one) != tiny.digests(other)


@pytest.mark.parametrize("count", [2, 3])
def test_very_few_images_are_enough_to_train_on(count: int) -> None:
    images, labels = shades(count, 2)
    assert recognised(train_recogniser(unit(images), labels, 2, steps=2), unit(images)).shape == (count,)


def test_images_are_moved_by_one_pixel_at_most() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    places = {
        tuple((shifted(x, torch.Generator().manual_seed(seed))[0, 0] > 0).nonzero()[0].tolist())
        for seed in range(60)
    }
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


def test_large_images_are_shrunk_a_part_at_a_time_to_what_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.randint(0, 256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    whole = torch.nn.functional.avg_pool2d(unit(images), 2)
    monkeypatch.setattr("trainers.evaluation.recogniser.AT_ONCE", 2)
    torch.testing.assert_close(looked_at(images), whole)
    torch.testing.assert_close(looked_at(images, torch.tensor([4, 1])), whole[[4, 1]])


def split(classes: int, held_out: int) -> Split:
    train, held = shades(6 * classes, classes), shades(held_out, classes, seed=1)
    return Split(Images(*train), Images(*held))


SETTINGS = SamplerSettings(steps=2, guidance=1.0)


DIGEST = "d" * 64


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def judged(
    model: ComposedModel, task: str, images: Split, count: int, cache: Path | None, **asked: Any
) -> Judgement:
    return judge(model, task, images, SETTINGS, DIGEST, Measuring(count, **asked), cache)


def test_a_task_is_judged_on_all_its_classes_alike(cache: Path) -> None:
    found = judged(tiny.composed(*tiny.two_tasks()), "letters", split(3, 6), 9, cache)
    assert found.images.shape == (9, 1, 8, 8)
    assert torch.bincount(found.labels).tolist() == [3, 3, 3]
    assert found.recognition is not None
    assert len(found.recognition.by_class) == 3
    assert 0 <= found.recognition.share <= 1
    assert "notes" not in found.results
    assert found.recognition.real_accuracy == 1.0
    assert found.results["recognition"]["by_class"] == list(found.recognition.by_class)


def test_every_figure_is_named_after_who_looked_and_stands_beside_all_that_it_depends_on(cache: Path) -> None:
    found = judged(tiny.composed(*tiny.two_tasks()), "letters", split(3, 6), 9, cache)
    names = {"FD", "KD", "IS", "precision", "recall"}
    assert {f"{name}[recogniser]" for name in names} < found.results.keys()
    low, mean, high = (found.results["KD[recogniser]"][name] for name in ("low", "mean", "high"))
    assert low < mean < high
    assert found.results["nearest"].keys() == {"distance", "held_out", "copies"}
    protocol = found.protocol
    assert protocol["extractor"]["name"] == "recogniser"
    assert protocol["reference"] == {"dataset": DIGEST, "part": "train", "images": 18}
    assert (protocol["samples"], protocol["size"], protocol["seed"]) == (9, 8, 0)
    assert protocol["sampler"] == {"steps": 2, "guidance": 1.0}


def test_the_same_evaluation_again_gives_the_same_figures_to_rounding_and_another_seed_another_protocol(
    cache: Path,
) -> None:
    model = tiny.composed(*tiny.two_tasks())
    one, two = (judged(model, "letters", split(3, 6), 6, cache) for _ in range(2))
    assert one.protocol == two.protocol
    first, second = (numbers(each.results) for each in (one, two))
    assert second == pytest.approx(first, rel=1e-6)  # how memory is aligned rounds sums
    assert judged(model, "letters", split(3, 6), 6, cache, seed=1).protocol != one.protocol


def test_every_class_is_drawn_even_if_fewer_images_were_asked_for(cache: Path) -> None:
    found = judged(tiny.composed(*tiny.two_tasks()), "letters", split(3, 0), 1, cache)
    assert found.labels.tolist() == [0, 1, 2]
    assert found.recognition is None  # nothing was kept back to judge the classifier by
    assert found.results["nearest"].keys() == {"distance"}
    assert found.results["notes"] == [
        "recognition is left out: no image was kept back to judge the classifier by."
    ]


def test_where_there_are_too_few_samples_for_a_distance_that_is_told(cache: Path) -> None:
    found = judged(tiny.composed(*tiny.two_tasks()), "digits", split(2, 6), 2, cache)
    assert "FD[recogniser]" not in found.results
    [note] = found.results["notes"]
    assert note.startswith("FD[recogniser] and KD[recogniser] are left out: they need 3 samples")
    assert note.endswith("there are 2 and 12.")


def test_one_class_alone_has_nothing_to_be_told_apart_from_and_is_measured_all_the_same(cache: Path) -> None:
    model = tiny.composed(tiny.adapter(tiny.meta("faces", (4, 5))))
    found = judged(model, "faces", split(1, 5), 4, cache)
    assert found.recognition is None
    assert found.images.shape == (4, 1, 8, 8)
    assert found.results["FD[recogniser]"] >= 0


def test_who_recognises_is_part_of_the_protocol_also_where_another_looks(cache: Path, tmp_path: Path) -> None:
    looks = f"clip={save_clip(tmp_path)}"
    model, images = tiny.composed(*tiny.two_tasks()), split(3, 6)
    found = judged(model, "letters", images, 6, cache, extractor=looks)
    usual = judged(model, "letters", images, 6, cache)
    assert found.results["recognition"] == usual.results["recognition"]
    assert found.protocol["recogniser"] == usual.protocol["extractor"]["digest"]
    assert found.protocol["recogniser"] != found.protocol["extractor"]["digest"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_task_that_draws_no_numbers_is_refused_in_words_instead_of_measured(
    cache: Path, value: float
) -> None:
    digits, letters = tiny.two_tasks()
    broken = {name: torch.full_like(tensor, value) for name, tensor in letters.tensors.items()}
    model = tiny.composed(digits, replace(letters, tensors=broken))
    with pytest.raises(SamplesNotNumbers, match="9 of 9 samples") as raised:
        judged(model, "letters", split(3, 6), 9, cache)
    assert raised.value.lasting  # a job that is tried again would draw the same
    assert "FD[recogniser]" in judged(model, "digits", split(2, 6), 6, cache).results


def test_samples_that_are_training_images_are_told_as_copies(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = split(3, 60)
    monkeypatch.setattr(drawing, "sample", lambda model, draws, settings: images.train.unit()[: len(draws)])
    found = judged(tiny.composed(*tiny.two_tasks()), "letters", images, 6, cache)
    assert found.results["nearest"]["copies"] == 1.0
    assert found.twins is not None
    torch.testing.assert_close(found.twins, found.images)


def test_a_task_with_a_condition_is_measured_by_how_far_it_shows_it(cache: Path) -> None:
    record = {"name": "canny", "channels": 1, "source": "canny", "low": 50, "high": 100}
    model = tiny.composed(tiny.adapter(tiny.meta("edges", (4, 5), condition=record)))
    images = split(1, 5)
    told = [replace(part, conditions=part.images) for part in (images.train, images.held_out)]
    found = judged(model, "edges", Split(*told), 4, cache)
    assert 0 <= found.results["canny"]["f1"] <= 1
    assert found.protocol["condition"] == record


@pytest.mark.parametrize(
    ("name", "save", "figure"), [("depth", save_depth, "rmse"), ("segmentation", save_segmentation, "miou")]
)
def test_what_a_model_draws_is_drawn_again_from_samples_and_where_it_is_gone_that_is_told(
    tmp_path: Path, cache: Path, name: str, save: Callable[[Path], Path], figure: str
) -> None:
    record = condition_record(name, model=save(tmp_path / "model"))
    own = tiny.meta("shown", (4, 5), condition=published(record))
    one = tiny.adapter(own, base=tiny.backbone(image_size=32))
    model = tiny.composed(one, base=tiny.backbone(image_size=32))
    draw = maker(record)
    parts = [Images(*shades(count, 1, seed=count, size=32)) for count in (6, 4)]
    drawn = [torch.stack([torch.from_numpy(draw(x.numpy())) for x in part.images]) for part in parts]
    images = Split(*(replace(part, conditions=told) for part, told in zip(parts, drawn, strict=True)))
    found = judged(model, "shown", images, 4, cache, condition=record)
    assert 0 <= found.results[name][figure] <= 1
    assert "notes" not in found.results
    (tmp_path / "model").rename(tmp_path / "gone")
    without = judged(model, "shown", images, 4, cache, condition=record)
    assert without.protocol == found.protocol
    assert name not in without.results
    [note] = without.results["notes"]
    assert note == f"{name} is left out: condition: what it names is not there any more."
    [note] = judged(model, "shown", images, 4, cache).results["notes"]
    assert "--condition-model" in note


def test_where_memory_runs_out_fewer_are_drawn_at_once_and_none_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ComposedModel(tiny.backbone(), tiny.FINGERPRINT)
    model.load(tiny.adapter(tiny.meta()))
    draws = [Draw("digits", 4 + i % 2, i) for i in range(10)]
    settings = SamplerSettings(2, 2.0)
    whole = drawing.drawn(model, draws, settings, 10)
    sizes = []

    def cramped(model: ComposedModel, given: Sequence[Draw], settings: SamplerSettings) -> torch.Tensor:
        if len(given) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(given))
        return sample(model, given, settings)

    monkeypatch.setattr(drawing, "sample", cramped)
    torch.testing.assert_close(drawing.drawn(model, draws, settings, 10), whole, rtol=1e-4, atol=1e-5)
    assert sizes == [2, 2, 2, 2, 2]

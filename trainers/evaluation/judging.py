"""Drawing samples of a task and measuring them, with the protocol by which the figures may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings
from affinery.errors import PlaceInvalid
from trainers.conditions import published
from trainers.data import Split, as_unit
from trainers.errors import SamplesNotNumbers
from trainers.evaluation.distances import (
    NEIGHBOURS,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from trainers.evaluation.extractors import (
    Clip,
    Extractor,
    Seen,
    Small,
    compared_with,
    extractor_of,
    features_of,
    figure_name,
    recogniser_of,
)
from trainers.evaluation.fidelity import condition_fidelity
from trainers.evaluation.neighbours import neighbours
from trainers.evaluation.recogniser import Recogniser, Recognition, looked_at, recognition
from trainers.evaluation.samples import Samples, draw_samples
from trainers.evaluation.spelling import RECOGNISER

VERSION = 1  # of how all this is measured: figures of different versions are not compared
FEWEST, SHOWN = 3, 64


@dataclass(frozen=True)
class Measuring:
    """What an evaluation is asked to do.

    extractor: as extractors.py spells it. condition: the task's own record, or another that says which model
    draws the condition; an adapter's record says none, as no place of a machine is published.
    """

    samples: int = 200
    seed: int = 0
    extractor: str = RECOGNISER
    condition: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Judgement:
    """What a task draws, and what was measured of it, under which protocol.

    recognition: None where there is one class only, or no image was kept back. twins: of the first samples,
    the training images that are nearest. results: "notes" among them says what was left out, and why.
    """

    images: Tensor
    labels: Tensor
    recognition: Recognition | None
    draws: tuple[Draw, ...]
    protocol: dict[str, Any]
    results: dict[str, Any]
    twins: Tensor | None


def judge(
    model: ComposedModel,
    task: str,
    split: Split,
    settings: SamplerSettings,
    dataset_digest: str,
    asked: Measuring,
    cache: Path | None = None,
) -> Judgement:
    """Draws samples, all classes alike, and measures them against the images that the task learnt from.

    cache: where extractors trained here and features of real images are kept.
    Raises ConfigInvalid or UnknownName for an extractor that cannot be had, SamplesNotNumbers.
    """
    train, names = split.train, model.task(task).meta.class_names
    extractor = extractor_of(asked.extractor, dataset_digest, train, len(names), cache, asked.seed)
    samples = draw_samples(model, task, split, settings, asked.samples, asked.seed)
    _check_numbers(task, samples.images)
    rows = compared_with(len(train.labels))
    size = model.image_size(task)
    protocol: dict[str, Any] = {
        "version": VERSION,
        "extractor": {"name": extractor.name, "digest": extractor.digest},
        "reference": {"dataset": dataset_digest, "part": "train", "images": len(rows)},
        "size": size,
        "samples": len(samples.labels),
        "seed": asked.seed,
        "sampler": asdict(settings),
        "neighbours": NEIGHBOURS,
    }
    results: dict[str, Any] = {"samples": len(samples.labels)}
    notes = _left_out(extractor, len(rows), samples, split, len(names))
    seen = extractor.see(samples.images)
    if min(len(rows), len(samples.labels)) >= FEWEST:
        key = f"{dataset_digest}/features/train/{len(rows)}/{size}/{train.images.shape[1]}/{extractor.digest}"
        real = features_of(extractor, train, rows, cache, key)
        results |= _distances(extractor, real, seen)
    near = neighbours(samples.images, train.images, split.held_out.images, rows)
    told = {"distance": near.distance, "held_out": near.held_out_distance, "copies": near.share}
    results["nearest"] = {name: number for name, number in told.items() if number is not None}
    twins = as_unit(train.images[near.nearest[:SHOWN]])
    if isinstance(extractor, Clip):
        texts, protocol["texts"] = _texts(samples, names)
        results[figure_name("CLIP-score", extractor)] = extractor.score(seen.features, texts)
    condition = asked.condition or model.task(task).meta.condition
    if condition is not None:
        protocol["condition"] = published(condition)
        shown, without = _fidelity(condition, samples)
        results |= shown
        notes += without
    if notes:
        results["notes"] = notes
    recognised = None
    if len(names) > 1 and len(split.held_out.labels):
        if isinstance(extractor, Small):
            recogniser = extractor.model
        else:
            recogniser = recogniser_of(dataset_digest, train, len(names), cache, asked.seed)
            protocol["recogniser"] = Small(recogniser).digest
        recognised = _recognised(recogniser, samples, split, len(names))
        results["recognition"] = {
            "share": recognised.share,
            "real_accuracy": recognised.real_accuracy,
            "by_class": list(recognised.by_class),
        }
    return Judgement(samples.images, samples.labels, recognised, samples.draws, protocol, results, twins)


def _left_out(extractor: Extractor, real: int, samples: Samples, split: Split, classes: int) -> list[str]:
    """Why there is no distance, or no recognition though there are classes to be told apart."""
    notes, drawn = [], len(samples.labels)
    if min(real, drawn) < FEWEST:
        distances = f"{figure_name('FD', extractor)} and {figure_name('KD', extractor)}"
        notes.append(
            f"{distances} are left out: they need {FEWEST} samples and {FEWEST} images to learn from, and "
            f"there are {drawn} and {real}."
        )
    if classes > 1 and not len(split.held_out.labels):
        notes.append("recognition is left out: no image was kept back to judge the classifier by.")
    return notes


def _check_numbers(task: str, images: Tensor) -> None:
    """Raises SamplesNotNumbers: no figure of such samples says anything."""
    broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise SamplesNotNumbers(task, broken, len(images))


def _fidelity(condition: Mapping[str, Any], samples: Samples) -> tuple[dict[str, Any], list[str]]:
    """How far samples show what they were told, and why that is left out where nothing here can tell it."""
    name = str(condition["name"])
    pictures = [draw.condition for draw in samples.draws if draw.condition is not None]
    if not pictures:
        return {}, []
    try:
        shown = condition_fidelity(condition, samples.images, pictures)
    except PlaceInvalid as error:  # where the model was is no concern of those who read the record
        return {}, [f"{name} is left out: {error.elsewhere()}"]
    if shown is None:
        return {}, [f"{name} is left out: no model is known here that draws it; see --condition-model."]
    return {name: shown}, []


def _recognised(recogniser: Recogniser, samples: Samples, split: Split, classes: int) -> Recognition:
    held = split.held_out
    return recognition(
        recogniser, samples.images, samples.labels, looked_at(held.images), held.labels, classes
    )


def _distances(extractor: Extractor, real: Tensor, seen: Seen) -> dict[str, Any]:
    precision, recall = precision_recall(real, seen.features)
    found: dict[str, Any] = {
        "FD": frechet_distance(real, seen.features),
        "KD": asdict(kernel_distance(real, seen.features)),
        "precision": precision,
        "recall": recall,
    }
    if seen.logits is not None:
        found["IS"] = inception_score(seen.logits)
    return {figure_name(name, extractor): value for name, value in found.items()}


def _texts(samples: Samples, names: tuple[str, ...]) -> tuple[list[str], str]:
    """What each sample should look like in words: its caption, else its class."""
    if any(draw.prompt for draw in samples.draws):
        return [draw.prompt for draw in samples.draws], "captions"
    return [f"a photo of a {names[int(label)]}" for label in samples.labels], "a photo of a CLASS"

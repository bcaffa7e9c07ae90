"""What a task sees beside its images, checked beforehand: a condition, captions, a size of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affinery.errors import ConfigInvalid
from orchestration.specs import spec_of
from registry.records import BackboneRecord, DatasetRecord

Condition = Mapping[str, Any] | None
NONE = "none"


def conditions_of(
    names: Sequence[str], low: int | None, high: int | None, model: Path | None
) -> list[dict[str, Any] | None]:
    """The record of each. Thresholds are canny's, the model is the others'. Raises ConfigInvalid …"""
    from trainers.conditions import condition_record

    found: list[dict[str, Any] | None] = []
    for name in names:
        if name == NONE:
            found.append(None)
        elif name == "canny":
            found.append(condition_record(name, low, high))
        else:
            found.append(condition_record(name, model=model))
    if (low is not None or high is not None) and "canny" not in names:
        raise ConfigInvalid("--canny-low, --canny-high", "no task is told edges.")
    if model is not None and not set(names) - {"canny", NONE}:
        raise ConfigInvalid("--condition-model", "no task is told what a model draws.")
    return found


def one_each(names: Sequence[str], conditions: Sequence[Condition]) -> list[Condition]:
    """A condition a task: one that was given holds for all, none given means none."""
    if len(conditions) <= 1:
        return [conditions[0] if conditions else None] * len(names)
    if len(conditions) != len(names):
        raise ConfigInvalid("--condition", f"{len(conditions)} were named for {len(names)} tasks.")
    return list(conditions)


def facts(condition: Condition, image_size: int | None) -> dict[str, Any]:
    """What a task's record says of it; nothing of an ordinary task of classes."""
    found = {"condition": None if condition is None else dict(condition), "image_size": image_size}
    return {name: value for name, value in found.items() if value is not None}


def check_architecture(
    backbone: BackboneRecord, conditions: Sequence[Condition], image_size: int | None
) -> int | None:
    """Whether the backbone can take such images and conditions; no weights are read. Raises ConfigInvalid.

    → the size, or None where it is the backbone's own
    """
    if image_size is None and not any(conditions):
        return None
    from affinery.backbones import architecture
    from affinery.backbones.contract import on_meta
    from affinery.conditions import stem_for
    from affinery.limits import SIDE_LIMIT

    spec = spec_of(backbone)
    if image_size is not None and not 1 <= image_size <= SIDE_LIMIT:
        raise ConfigInvalid("image_size", f"{image_size} is not a number from 1 to {SIDE_LIMIT}.")
    sketch = on_meta(spec, architecture(spec.arch))
    sketch.hint_shape(image_size)
    for condition in conditions:
        if condition is not None:
            stem_for(sketch, condition, image_size)
    return None if image_size == spec.image_size else image_size


def check_dataset(
    data: Path,
    dataset: DatasetRecord,
    backbone: BackboneRecord,
    condition: Condition,
    on_note: Callable[[str], None],
) -> None:
    """Whether a dataset has the maps that a condition is taken from. Raises ConfigInvalid.

    on_note: told what becomes of its captions. A dataset that is not on this machine is checked in training.
    """
    from trainers.errors import DatasetChanged
    from trainers.packs import read_manifest

    try:
        images = read_manifest(data / dataset.dvc_path).images
    except DatasetChanged:
        return
    if condition is not None and condition["source"] == "maps":
        lacking = [image.source_name for image in images if image.condition is None]
        if lacking:
            raise ConfigInvalid(
                "--condition",
                f"{len(lacking)} images of {dataset.ref} have no map ({lacking[0]}, …): name them in its "
                f"metadata.jsonl, or give a model that draws {condition['name']}.",
            )
    told, captions = "text" in backbone.spec, sum(image.text is not None for image in images)
    if told and captions < len(images):
        on_note(f"{len(images) - captions} images of {dataset.ref} are learnt with the empty caption")
    if captions and not told:
        on_note(f"the captions of {dataset.ref} are not used: {backbone.ref} is told classes, not captions")

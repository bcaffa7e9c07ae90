"""What one training is to do, as data that travels: to a Ray worker, and into the record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from trainers.recipe import Recipe


@dataclass(frozen=True)
class PlannedTask:
    """One task to train. pack: the folder of its dataset; block: its rows [lo, hi) in the class table.

    condition: as `trainers.conditions` records it; image_size: where it is not the backbone's own.
    warm_start: the file of an older adapter, whose tensors it begins from as far as they fit.
    """

    name: str
    kind: str
    config: dict[str, Any]
    pack: str
    dataset_digest: str
    block: tuple[int, int]
    class_names: tuple[str, ...]
    condition: dict[str, Any] | None = None
    image_size: int | None = None
    warm_start: str | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """Tasks that train together on one backbone. report_every, save_every: in steps.

    cache: the folder where latents and what else is made of datasets is kept; none keeps nothing.
    """

    backbone_file: str
    fingerprint: str
    tasks: tuple[PlannedTask, ...]
    recipe: Recipe
    report_every: int = 10
    save_every: int = 100
    cache: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> TrainingPlan:
        raw = json.loads(text)
        raw["recipe"] = Recipe.from_dict(raw["recipe"])
        raw["tasks"] = tuple(
            PlannedTask(**{**task, "block": tuple(task["block"]), "class_names": tuple(task["class_names"])})
            for task in raw["tasks"]
        )
        return cls(**raw)

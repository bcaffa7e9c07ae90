"""A cell of a table: one training and what was measured of it, kept as JSON: none is computed twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from affinery import tensor_files
from affinery.adapters.files import Adapter, AdapterMeta, read_adapter
from affinery.backbones.files import inspect_backbone, load_backbone
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import SamplerSettings
from benchmarks.papers.silhouettes import SILHOUETTE, ceiling, fidelity
from benchmarks.papers.variants import changed
from registry.digests import digest_of
from trainers.conditions import published
from trainers.data import Split
from trainers.evaluation.judging import Judgement, Measuring, judge
from trainers.loop import CoTraining
from trainers.packs import read_manifest
from trainers.pictures import png, tile
from trainers.plan import PlannedTask, TrainingPlan
from trainers.recipe import Recipe
from trainers.session import TrainingSession, adapter_name, load_task
from trainers.streams import TaskData

VERSION = 2  # of what a cell's JSON holds, and of how it is computed
SHOWN = 20


def _clock() -> float:
    """Seconds: of a processor, which others beside do not lengthen; with a GPU, of the wall."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class NotKept(Exception):
    """It was not computed, and nothing is any more."""


@dataclass(frozen=True)
class Sampling:
    """How every cell of a run is measured."""

    samples: int
    steps: int
    guidance: float = 2.0
    extractor: str = "recogniser"
    seed: int = 0


@dataclass(frozen=True)
class Cell:
    """One training. backbone, dataset: names of the run's; config: of the kind; recipe: of the training.

    image_size: where it is not the backbone's own; variant: of the backbone, as `variants` names them.
    """

    backbone: str
    dataset: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    condition: dict[str, Any] | None = None
    image_size: int | None = None
    variant: str | None = None

    def facts(self) -> dict[str, Any]:
        """What makes it another cell: a size or a variant only where it has one."""
        late = {"image_size", "variant"}
        return {name: value for name, value in asdict(self).items() if name not in late or value is not None}


@dataclass(frozen=True)
class Bench:
    """Where cells are computed: files of backbones and packs by name, how they are measured, what is kept.

    looks: the digest of the weights that look, where they are of the user's. frozen: nothing is computed any
    more.
    """

    out: Path
    backbones: dict[str, Path]
    packs: dict[str, Path]
    sampling: Sampling
    looks: str | None = None
    frozen: bool = False

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    def key(self, cell: Cell) -> str:
        """Changes with everything that the cell's figures depend on. Raises NotKept without its inputs."""
        if cell.backbone not in self.backbones or cell.dataset not in self.packs:
            raise NotKept(f"{cell.backbone}, {cell.dataset}")
        facts = {
            "version": VERSION,
            "cell": cell.facts(),
            "sampling": asdict(self.sampling) | ({} if self.looks is None else {"extractor": self.looks}),
            "backbone": inspect_backbone(self.backbones[cell.backbone]).fingerprint,
            "dataset": read_manifest(self.packs[cell.dataset]).digest,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

    def kept(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was computed under a key before; else it is computed, and written whole."""
        path = self.out / "cells" / f"{key}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        if self.frozen:
            raise NotKept(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = compute()
        tensor_files.write_whole(path, json.dumps(made, indent=1, ensure_ascii=False).encode())
        return made

    def asked(self, compute: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What is computed or kept; None where it is not there and nothing is computed any more."""
        try:
            return compute()
        except NotKept:
            return None

    def measured(self, cell: Cell) -> dict[str, Any]:
        """A cell's figures, trained and measured where they are not there yet."""
        key = self.key(cell)

        def compute() -> dict[str, Any]:
            adapter, seconds, curve = self.train(cell, self.out / "adapters" / key)
            judgement = self.judge(cell, adapter)
            (self.out / "cells" / f"{key}.png").write_bytes(png(tile(judgement.images[:SHOWN], SHOWN)))
            return {
                "key": key,
                "cell": cell.facts(),
                "parameters": adapter.parameters,
                "seconds": seconds,
                "results": judgement.results,
                "protocol": judgement.protocol,
                "protocol_digest": digest_of(judgement.protocol),
                "loss": curve,
            }

        return self.kept(key, compute)

    def planned(self, cell: Cell, warm_start: Path | None = None) -> PlannedTask:
        pack = self.packs[cell.dataset]
        manifest = read_manifest(pack)
        first = inspect_backbone(self.backbones[cell.backbone]).spec.null_index + 1
        return PlannedTask(
            cell.dataset,
            cell.kind,
            cell.config,
            str(pack),
            manifest.digest,
            (first, first + len(manifest.classes)),
            manifest.classes,
            cell.condition,
            cell.image_size,
            warm_start=None if warm_start is None else str(warm_start),
        )

    def model(self, cell: Cell) -> ComposedModel:
        """A cell's backbone, without a task."""
        file = self.backbones[cell.backbone]
        backbone = load_backbone(file)
        if cell.variant is not None:
            backbone = changed(backbone, cell.variant)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return ComposedModel(backbone.to(device), inspect_backbone(file).fingerprint)

    def train(
        self, cell: Cell, folder: Path, warm_start: Path | None = None
    ) -> tuple[Adapter, float, list[list[float]]]:
        """→ the adapter, the seconds of the training alone, and its loss by steps"""
        if cell.variant is not None:
            return self._train_variant(cell)
        training = self.session(cell, warm_start)
        began, curve, done = _clock(), [], False
        while not done:
            progress = training.advance()
            curve.append([progress.step, progress.losses[cell.dataset]])
            done = progress.done
        seconds = _clock() - began
        training.save(folder)
        return read_adapter(folder / adapter_name(0)), seconds, curve

    def session(self, cell: Cell, warm_start: Path | None = None, reports: int = 50) -> TrainingSession:
        """A cell's training before its first step."""
        file = self.backbones[cell.backbone]
        recipe = Recipe.from_dict(cell.recipe)
        return TrainingSession(
            TrainingPlan(
                str(file),
                inspect_backbone(file).fingerprint,
                (self.planned(cell, warm_start),),
                recipe,
                report_every=max(1, recipe.steps // reports),
                cache=str(self.cache),
            )
        )

    def _train_variant(self, cell: Cell) -> tuple[Adapter, float, list[list[float]]]:
        """No file holds a variant, so there is no session of one: pixels only, and no captions."""
        model, planned = self.model(cell), self.planned(cell)
        split = load_task(planned, model.backbone, str(self.cache))
        meta = AdapterMeta(
            planned.name,
            planned.kind,
            planned.config,
            model.fingerprint,
            model.null_row,
            planned.block,
            planned.class_names,
            condition=published(planned.condition),
            image_size=planned.image_size,
        )
        data = TaskData(meta, split.train.images, split.train.labels, None, split.train.conditions)
        training = CoTraining(model, [data], Recipe.from_dict(cell.recipe))
        began, curve = _clock(), []
        training.run(lambda step, losses: curve.append([step, losses[planned.name]]))
        return training.finish()[0], _clock() - began, curve

    def judge(self, cell: Cell, adapter: Adapter) -> Judgement:
        """Measures an adapter on a model of its own."""
        model = self.model(cell)
        model.load(adapter)
        planned = self.planned(cell)
        split: Split = load_task(planned, model.backbone, str(self.cache))
        how = self.sampling
        found = judge(
            model,
            adapter.meta.task,
            split,
            SamplerSettings(how.steps, how.guidance),
            planned.dataset_digest,
            Measuring(how.samples, how.seed, how.extractor),
            self.cache,
        )
        if cell.condition != SILHOUETTE:
            return found
        shown = fidelity(found.images, found.draws) | {"real": ceiling(split.train)["miou"]}
        return replace(found, results=found.results | {"segmentation": shown})

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
from affinery.adapters.files import Adapter, adapter_bytes, read_adapter
from affinery.backbones.files import inspect_backbone, load_backbone
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import SamplerSettings
from registry.digests import digest_of
from trainers.data import Split
from trainers.evaluation.judging import Judgement, Measuring, judge
from trainers.packs import read_manifest
from trainers.pictures import png, tile
from trainers.plan import PlannedTask, TrainingPlan
from trainers.recipe import Recipe
from trainers.session import TrainingSession, adapter_name, load_task

VERSION = 2  # of what a cell's JSON holds, and of how it is computed
SHOWN = 20


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
    """One training. backbone, dataset: names of the run's; config: of the kind; recipe: of the training."""

    backbone: str
    dataset: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    condition: dict[str, Any] | None = None


@dataclass(frozen=True)
class Bench:
    """Where cells are computed: files of backbones and packs by name, how they are measured, what is kept."""

    out: Path
    backbones: dict[str, Path]
    packs: dict[str, Path]
    sampling: Sampling

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    def key(self, cell: Cell) -> str:
        """Changes with everything that the cell's figures depend on."""
        facts = {
            "version": VERSION,
            "cell": asdict(cell),
            "sampling": asdict(self.sampling),
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
        path.parent.mkdir(parents=True, exist_ok=True)
        made = compute()
        tensor_files.write_whole(path, json.dumps(made, indent=1, ensure_ascii=False).encode())
        return made

    def known(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's figures, where they are there."""
        path = self.out / "cells" / f"{self.key(cell)}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def measured(self, cell: Cell) -> dict[str, Any]:
        """A cell's figures, trained and measured where they are not there yet."""
        key = self.key(cell)

        def compute() -> dict[str, Any]:
            adapter, seconds, curve = self.train(cell, self.out / "adapters" / key)
            judgement = self.judge(cell, adapter)
            (self.out / "cells" / f"{key}.png").write_bytes(png(tile(judgement.images[:SHOWN], SHOWN)))
            return {
                "key": key,
                "cell": asdict(cell),
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
            warm_start=None if warm_start is None else str(warm_start),
        )

    def train(
        self, cell: Cell, folder: Path, warm_start: Path | None = None
    ) -> tuple[Adapter, float, list[list[float]]]:
        """→ the adapter, the seconds of the training alone, and its loss by steps"""
        file = self.backbones[cell.backbone]
        recipe = Recipe.from_dict(cell.recipe)
        report = max(1, recipe.steps // 50)
        plan = TrainingPlan(
            str(file),
            inspect_backbone(file).fingerprint,
            (self.planned(cell, warm_start),),
            recipe,
            report_every=report,
            cache=str(self.cache),
        )
        training = TrainingSession(plan)
        began, curve, done = time.perf_counter(), [], False
        while not done:
            progress = training.advance()
            curve.append([progress.step, progress.losses[cell.dataset]])
            done = progress.done
        seconds = time.perf_counter() - began
        training.save(folder)
        return read_adapter(folder / adapter_name(0)), seconds, curve

    def judge(self, cell: Cell, adapter: Adapter) -> Judgement:
        """Measures an adapter on a model of its own."""
        backbone = load_backbone(self.backbones[cell.backbone])
        model = ComposedModel(
            backbone.to("cuda" if torch.cuda.is_available() else "cpu"), adapter.meta.backbone
        )
        model.load(adapter)
        planned = self.planned(cell)
        split: Split = load_task(planned, model.backbone, str(self.cache))
        how = self.sampling
        return judge(
            model,
            adapter.meta.task,
            split,
            SamplerSettings(how.steps, how.guidance),
            planned.dataset_digest,
            Measuring(how.samples, how.seed, how.extractor),
            self.cache,
        )


def sequence(bench: Bench, order: tuple[str, ...], like: Cell) -> dict[str, Any]:
    """R[stage, task] where one set of layers is trained on, task after task, each with class rows of its own.

    like: backbone, kind, config and recipe; its dataset is not looked at. An older task is drawn with the
    layers as they are now: what full fine-tuning of one model forgets.
    """
    cells = [replace(like, dataset=name) for name in order]
    keys = [bench.key(cell) for cell in cells]
    key = hashlib.sha256(json.dumps(["sequence", VERSION, *keys]).encode()).hexdigest()[:20]

    def compute() -> dict[str, Any]:
        rows, learnt = [], dict[str, Adapter]()
        warm: Path | None = None
        folder = bench.out / "adapters" / key
        backbone = load_backbone(bench.backbones[like.backbone])
        null_row = backbone.class_table[backbone.spec.null_index].detach()
        for number, cell in enumerate(cells):
            adapter, _, _ = bench.train(cell, folder / str(number), warm)
            learnt[cell.dataset] = adapter
            rows.append(
                [_figure(bench, cells[i], _now(learnt[name], adapter)) for i, name in enumerate(learnt)]
            )
            # The next task takes the layers over, and begins its own class rows afresh.
            warm = folder / f"{number}.safetensors"
            layers = {name: tensor for name, tensor in adapter.tensors.items() if name != "class_rows"}
            fresh = null_row.expand_as(adapter.tensors["class_rows"])
            warm.write_bytes(adapter_bytes(Adapter(adapter.meta, layers | {"class_rows": fresh})))
        return {"order": list(order), "kind": like.kind, "matrix": rows}

    return bench.kept(key, compute)


def _now(task: Adapter, layers: Adapter) -> Adapter:
    """A task's class rows with the layers of the last one trained."""
    rows = {"class_rows": task.tensors["class_rows"]}
    return Adapter(task.meta, dict(layers.tensors) | rows)


def _figure(bench: Bench, cell: Cell, adapter: Adapter) -> float:
    results = bench.judge(cell, adapter).results
    return float(next(value for name, value in results.items() if name.startswith(("FD", "FID"))))

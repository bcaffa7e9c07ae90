"""What one model forgets as it goes on learning, and its bounds: all tasks at once, an adapter a task."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from affinery.adapters.files import Adapter, AdapterMeta, adapter_bytes
from affinery.backbones.files import inspect_backbone, load_backbone
from benchmarks.papers.cells import VERSION, Bench, Cell
from benchmarks.papers.data import joined
from registry.metrics import numbers
from trainers.conditions import published

TOGETHER = "together"


def key_of(bench: Bench, what: str, cells: Sequence[Cell]) -> str:
    facts = [what, VERSION, *(bench.key(cell) for cell in cells)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def sequence(bench: Bench, order: tuple[str, ...], like: Cell) -> dict[str, Any]:
    """R[stage, task] where one set of layers is trained on, task after task, each with class rows of its own.

    like: backbone, kind, config and recipe; its dataset is not looked at. An older task is drawn with the
    layers as they are now: what full fine-tuning of one model forgets.
    """
    cells = [replace(like, dataset=name) for name in order]
    key = key_of(bench, "sequence", cells)

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
                [
                    figure(bench.judge(cells[i], _now(learnt[name], adapter)).results)
                    for i, name in enumerate(learnt)
                ]
            )
            # The next task takes the layers over, and begins its own class rows afresh.
            warm = folder / f"{number}.safetensors"
            layers = {name: tensor for name, tensor in adapter.tensors.items() if name != "class_rows"}
            fresh = null_row.expand_as(adapter.tensors["class_rows"])
            warm.write_bytes(adapter_bytes(Adapter(adapter.meta, layers | {"class_rows": fresh})))
        return {"order": list(order), "kind": like.kind, "seed": like.recipe["seed"], "matrix": rows}

    return bench.kept(key, compute)


def joint(bench: Bench, names: Sequence[str], like: Cell) -> dict[str, Any]:
    """A figure by task of one set of layers trained on all tasks at once: the most a sequence can reach.

    Every class is drawn alike, and there are as many steps as a sequence takes in all.
    """
    names = sorted(names)
    for name in names:
        bench.key(replace(like, dataset=name))  # raises where something is missing
    pack = joined({name: bench.packs[name] for name in names}, bench.out / "packs")
    wide = replace(bench, packs=bench.packs | {TOGETHER: pack})
    recipe = like.recipe | {"steps": like.recipe["steps"] * len(names)}
    cell = replace(like, dataset=TOGETHER, recipe=recipe)
    key = key_of(wide, "joint", [cell])

    def compute() -> dict[str, Any]:
        adapter, _, _ = wide.train(cell, bench.out / "adapters" / key)
        found = {}
        for name in names:
            own = replace(like, dataset=name)
            found[name] = figure(bench.judge(own, part_of(adapter, bench, own)).results)
        return {"tasks": found, "seed": like.recipe["seed"]}

    return bench.kept(key, compute)


def part_of(whole: Adapter, bench: Bench, cell: Cell) -> Adapter:
    """The layers of an adapter of several datasets, with the class rows of one."""
    planned = bench.planned(cell)
    wanted = [whole.meta.class_names.index(f"{cell.dataset}/{name}") for name in planned.class_names]
    meta = AdapterMeta(
        planned.name,
        planned.kind,
        planned.config,
        inspect_backbone(bench.backbones[cell.backbone]).fingerprint,
        whole.meta.null_index,
        planned.block,
        planned.class_names,
        condition=published(planned.condition),
        image_size=planned.image_size,
    )
    return Adapter(meta, dict(whole.tensors) | {"class_rows": whole.tensors["class_rows"][wanted]})


def _now(task: Adapter, layers: Adapter) -> Adapter:
    """A task's class rows with the layers of the last one trained."""
    rows = {"class_rows": task.tensors["class_rows"]}
    return Adapter(task.meta, dict(layers.tensors) | rows)


def figure(results: Mapping[str, Any]) -> float:
    """The Fréchet distance among an evaluation's figures."""
    return next(value for name, value in numbers(results).items() if name.startswith(("FD", "FID")))


@dataclass(frozen=True)
class Bounds:
    """Sequences of one model, one an order and seed, and what stands beside them, one a seed.

    together: by task, of one model trained on all at once; apart: by task, of an adapter of its own.
    """

    sequences: list[dict[str, Any]]
    together: list[dict[str, float]]
    apart: list[dict[str, float]]

    def averages(self) -> dict[str, list[float]]:
        """By way of learning, the average over the tasks after the last stage, of every order and seed."""
        return {
            "one model, task after task": [statistics.mean(one["matrix"][-1]) for one in self.sequences],
            "one model, all tasks at once": [statistics.mean(one.values()) for one in self.together],
            "an adapter a task": [statistics.mean(one.values()) for one in self.apart],
        }

    def forgotten(self, *, since_best: bool) -> dict[str, list[float]]:
        """The same of how much worse a task is at the end than when it was learnt, or than it ever was.

        The last task is not counted: nothing came after it.
        """
        lost = [
            statistics.mean(
                one["matrix"][-1][i]
                - (min(row[i] for row in one["matrix"][i:]) if since_best else one["matrix"][i][i])
                for i in range(len(one["order"]) - 1)
            )
            for one in self.sequences
            if len(one["order"]) > 1
        ]
        return {"one model, task after task": lost, "an adapter a task": [0.0] * len(self.apart)}

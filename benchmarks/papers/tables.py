"""Which trainings make which table of the papers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.papers.cells import Cell
from benchmarks.papers.profiles import Profile
from benchmarks.papers.silhouettes import SILHOUETTE
from benchmarks.papers.variants import COPIED_TARGETS

CANNY = {"name": "canny", "channels": 1, "source": "canny", "low": 100, "high": 200}
FULL, LORA, LORA_16, DIFFFIT = "full fine-tuning", "LoRA r = 8", "LoRA r = 16", "DiffFit"
OURS, OURS_CNN, FULL_CNN = "DiffScaler (transformer)", "DiffScaler (CNN)", "full fine-tuning (CNN)"
FIRST = (FULL, LORA, DIFFFIT, OURS)
BASELINES = ("Adapt-Parallel", "Adapt-Sequential", "BitFit", "VPT-Deep", LORA, LORA_16, DIFFFIT)
LADDER = (0.1, 0.2, 1, 2, 5, 10, 20)
RATES = (0.1, 0.3, 1, 3)


@dataclass(frozen=True)
class Method:
    """A row: an adapter kind with its settings and its learning rate. class_lr: that of the class rows."""

    name: str
    kind: str
    config: dict[str, Any]
    lr: float
    class_lr: float
    backbone: str = "dit"
    variant: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table: a cell a dataset and seed."""

    name: str
    cells: dict[str, list[Cell]]


@dataclass(frozen=True)
class Table:
    """paper: the table that it has the shape of. shown: which figures, by the beginnings of their names."""

    name: str
    title: str
    paper: str
    rows: list[Row]
    shown: tuple[str, ...] = ("FD", "KD", "IS", "recognition.share")


class Methods:
    """All that is compared at equal steps, and the rows that they make under a profile."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        affiner = {"rank": profile.rank}
        listed = [
            self._method(FULL, "full"),
            self._method(LORA, "lora", {"rank": 8}),
            self._method(LORA_16, "lora", {"rank": 16}),
            self._method(DIFFFIT, "difffit"),
            self._method("BitFit", "bitfit"),
            self._method("Adapt-Parallel", "adaptformer-parallel"),
            self._method("Adapt-Sequential", "adaptformer-sequential"),
            self._method("VPT-Deep", "vpt-deep", {"depth": profile.prompted}),
            self._method(OURS, "affiner", affiner),
            self._method(FULL_CNN, "full", backbone="unet"),
            self._method(OURS_CNN, "affiner", affiner, backbone="unet"),
        ]
        self.by_name = {method.name: method for method in listed}

    def _method(
        self, name: str, kind: str, config: dict[str, Any] | None = None, backbone: str = "dit"
    ) -> Method:
        return Method(name, kind, config or {}, self.profile.rate(kind), self.profile.class_lr, backbone)

    def cells(
        self,
        method: Method,
        dataset: str,
        seeds: int,
        condition: dict[str, Any] | None = None,
        image_size: int | None = None,
        **recipe: Any,
    ) -> list[Cell]:
        """One cell a seed."""
        whole = {
            "steps": self.profile.later_steps or self.profile.steps,
            "batch": self.profile.batch,
            "lr": method.lr,
            "class_lr": method.class_lr,
            "mask_ratio": 0.0 if method.backbone != "dit" or condition else self.profile.mask_ratio,
            "precision": "auto" if self.profile.local else "fp32",
        } | recipe
        return [
            Cell(
                method.backbone,
                dataset,
                method.kind,
                method.config,
                whole | {"seed": seed},
                condition,
                image_size,
                method.variant,
            )
            for seed in range(seeds)
        ]

    def first(self, name: str, seeds: int) -> Row:
        """Of methods × datasets."""
        method, profile = self.by_name[name], self.profile
        return Row(
            name, {each: self.cells(method, each, seeds, steps=profile.steps) for each in profile.datasets}
        )

    def baseline(self, name: str) -> Row:
        method, profile = self.by_name[name], self.profile
        datasets = profile.compared or profile.datasets
        return Row(name, {each: self.cells(method, each, profile.later_seeds) for each in datasets})

    def ablation(self, name: str, method: Method | str, **recipe: Any) -> Row:
        """On one dataset alone."""
        found = self.by_name[method] if isinstance(method, str) else method
        dataset, seeds = self.profile.ablated, self.profile.later_seeds
        return Row(name, {dataset: self.cells(found, dataset, seeds, **recipe)})

    def affiner(self, name: str, **config: Any) -> Row:
        ours = self.by_name[OURS]
        return self.ablation(name, replace(ours, config={"rank": self.profile.rank} | config))

    def detailed(self, name: str, method: Method, dataset: str = "", **settings: Any) -> Row:
        """On the dataset of the spatial condition and of the higher resolution, where none is named."""
        dataset, seeds = dataset or self.profile.detailed, self.profile.later_seeds
        return Row(name, {dataset: self.cells(method, dataset, seeds, **settings)})


def tables(profile: Profile) -> list[Table]:
    """Everything that the run computes, a table after the other."""
    methods = Methods(profile)
    one = [
        Table(
            "methods",
            "Methods × datasets",
            "DiffScaler, Table 1",
            [methods.first(n, profile.seeds) for n in FIRST],
        ),
        Table(
            "baselines", "Baselines", "DiffFit, Table 1", [methods.baseline(n) for n in (FULL, *BASELINES)]
        ),
        Table("parts", "Parts of the Affiner, and d", "DiffScaler, Table 3", list(_parts(methods))),
        Table(
            "canny",
            "A spatial condition: canny",
            "DiffScaler, Table 2",
            list(_told(methods, CANNY)),
            ("canny.f1", "FD", "KD"),
        ),
        Table("gamma", "Where γ is", "DiffFit, Table 4 a, b", list(_gamma(methods))),
        Table("rates", "Learning rate of DiffFit", "DiffFit, Table 4 d", list(_ladder(methods))),
        Table("masks", "Masking ratio", "DiffScaler, §3.3", list(_masks(methods))),
        Table("tuning", "Learning rates of the methods", "neither paper", list(_tuning(methods))),
    ]
    if profile.local:
        return one
    return [
        *one,
        Table(
            "silhouettes",
            "A spatial condition from real maps: silhouettes",
            "DiffScaler, Table 2",
            list(_told(methods, SILHOUETTE, profile.mapped)),
            ("segmentation.miou", "segmentation.real", "FD", "KD"),
        ),
        Table("resolution", "Twice the resolution", "DiffFit, §3.3", list(_resolution(methods))),
        Table(
            "cnn",
            "On a CNN",
            "DiffScaler, Table 1",
            [methods.first(n, profile.beside) for n in (FULL_CNN, OURS_CNN)],
        ),
    ]


def _parts(methods: Methods) -> Iterator[Row]:
    yield methods.affiner("b", parts=["b"])
    yield methods.affiner("a", parts=["a"])
    yield methods.affiner("a, b", parts=["a", "b"])
    yield methods.affiner("low-rank", parts=["low-rank"])
    yield methods.affiner("all")
    for rank in methods.profile.ranks:
        yield methods.affiner(f"all, d = {rank}", rank=rank)


def _gamma(methods: Methods) -> Iterator[Row]:
    for start, blocks in methods.profile.gamma:
        method = replace(methods.by_name[DIFFFIT], config={"first_block": start, "blocks": blocks})
        yield methods.ablation(f"γ in {blocks} block(s) from block {start + 1}", method)


def _ladder(methods: Methods) -> Iterator[Row]:
    method = methods.by_name[DIFFFIT]
    for factor in LADDER:
        rates = {"lr": method.lr * factor, "class_lr": method.class_lr * factor}
        yield methods.ablation(f"learning rate × {factor:g}", method, **rates)


def _masks(methods: Methods) -> Iterator[Row]:
    profile, ours = methods.profile, methods.by_name[OURS]
    for ratio in (0.0, 0.25, 0.5, 0.75):
        how: dict[str, Any] = {"mask_ratio": ratio, "steps": profile.steps}
        named = profile.masked or (profile.ablated,)
        cells = {each: methods.cells(ours, each, profile.later_seeds, **how) for each in named}
        yield Row(f"{ratio:.0%} masked", cells)


def _tuning(methods: Methods) -> Iterator[Row]:
    """Whether a method would have done better at another rate, and with a lower one for its class rows."""
    steps = methods.profile.steps
    for name in FIRST:
        method = methods.by_name[name]
        for factor in RATES:
            rate = method.lr * factor
            yield methods.ablation(f"{name}, {rate:.0e}", method, lr=rate, steps=steps)
        rows = methods.profile.class_lr / 10
        yield methods.ablation(f"{name}, class rows {rows:.0e}", method, class_lr=rows, steps=steps)


def _told(methods: Methods, condition: dict[str, Any], dataset: str = "") -> Iterator[Row]:
    profile = methods.profile
    told: dict[str, Any] = {"condition": condition}
    told |= {} if profile.told_steps is None else {"steps": profile.told_steps}
    told |= {} if profile.told_batch is None else {"batch": profile.told_batch}
    if profile.local:
        down = {"rank": 32, "targets": ["down_blocks.*"]}
        for name, config in ((FULL, {}), (LORA, {"rank": 8}), (OURS, down)):
            method = replace(methods.by_name[name], config=config, backbone="sd")
            yield methods.detailed(name.replace("transformer", "U-Net"), method, **told)
        return
    for name in (FULL, LORA, OURS):
        yield methods.detailed(name, methods.by_name[name], dataset, **told)
    copied = replace(methods.by_name[FULL], config={"targets": list(COPIED_TARGETS)}, variant="copied")
    yield methods.detailed("a copy of half the blocks (ControlNet)", copied, dataset, **told)


def _resolution(methods: Methods) -> Iterator[Row]:
    size = 2 * methods.profile.size
    for name in (DIFFFIT, OURS):
        method = methods.by_name[name]
        yield methods.detailed(f"{name}, (i/2, j/2)", method, image_size=size)
        counted = replace(method, variant="counted")
        yield methods.detailed(f"{name}, counted on", counted, image_size=size)

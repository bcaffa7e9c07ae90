"""Which trainings make which table of the papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.papers.cells import Cell

CANNY = {"name": "canny", "channels": 1, "source": "canny", "low": 100, "high": 200}


@dataclass(frozen=True)
class Profile:
    """How long everything takes. rank: the Affiner's d, ranks: those of its ablation.

    pretraining: the dataset that both backbones are pretrained on; shipped: the transformer is the one that
    comes with Affinery instead. guidance: of all samples.
    """

    steps: int
    batch: int
    samples: int
    sampler_steps: int
    seeds: int
    datasets: tuple[str, ...]
    ablated: str
    orders: tuple[tuple[str, ...], ...]
    size: int
    channels: int
    width: int
    pretraining: str
    pretraining_steps: int
    pretraining_batch: int = 128
    rank: int = 8
    ranks: tuple[int, ...] = (1, 4, 16, 64)
    guidance: float = 2.0
    shipped: bool = False


PROFILES = {
    # To see that everything runs: no figure of it means anything.
    "quick": Profile(
        *(3, 4, 8, 2, 1),
        datasets=("digits", "letters"),
        ablated="digits",
        orders=(("digits", "letters"),),
        size=16,
        channels=1,
        width=48,
        pretraining="letters",
        pretraining_steps=3,
        pretraining_batch=64,
        ranks=(1, 4),
    ),
    # The shipped transformer, about an hour and a half of one processor.
    "short": Profile(
        *(300, 32, 200, 15, 2),
        datasets=("twemoji", "animals", "letters", "digits"),
        ablated="digits",
        orders=(
            ("digits", "letters", "animals"),
            ("letters", "animals", "digits"),
            ("animals", "digits", "letters"),
        ),
        size=16,
        channels=1,
        width=192,
        pretraining="noto",
        pretraining_steps=800,
        pretraining_batch=32,
        guidance=1.5,
        shipped=True,
    ),
    "small": Profile(
        *(2000, 64, 500, 50, 2),
        datasets=("twemoji", "animals", "letters", "digits"),
        ablated="twemoji",
        orders=(
            ("digits", "letters", "animals"),
            ("letters", "animals", "digits"),
            ("animals", "digits", "letters"),
        ),
        size=32,
        channels=3,
        width=192,
        pretraining="noto",
        pretraining_steps=20_000,
    ),
}


@dataclass(frozen=True)
class Method:
    """A row: an adapter kind with its settings and its learning rate. class_lr: that of the class rows."""

    name: str
    kind: str
    config: dict[str, Any]
    lr: float
    class_lr: float = 3e-2
    backbone: str = "dit"


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


def methods(profile: Profile) -> list[Method]:
    """All that is compared at equal steps."""
    affiner = {"rank": profile.rank}
    return [
        Method("full fine-tuning", "full", {}, 3e-4),
        Method("LoRA r = 8", "lora", {"rank": 8}, 3e-3),
        Method("LoRA r = 16", "lora", {"rank": 16}, 3e-3),
        Method("DiffFit", "difffit", {}, 3e-3),
        Method("BitFit", "bitfit", {}, 3e-3),
        Method("Adapt-Parallel", "adaptformer-parallel", {}, 3e-3),
        Method("Adapt-Sequential", "adaptformer-sequential", {}, 3e-3),
        Method("VPT-Deep", "vpt-deep", {"depth": 4}, 3e-3),
        Method("DiffScaler (transformer)", "affiner", affiner, 3e-3),
        Method("full fine-tuning (CNN)", "full", {}, 3e-4, backbone="unet"),
        Method("DiffScaler (CNN)", "affiner", affiner, 3e-3, backbone="unet"),
    ]


def tables(profile: Profile) -> list[Table]:
    """Everything that the run computes, a table after the other."""
    every = {method.name: method for method in methods(profile)}
    ours = every["DiffScaler (transformer)"]
    first = ("full fine-tuning", "LoRA r = 8", "DiffFit", ours.name)
    cnn = ("full fine-tuning (CNN)", "DiffScaler (CNN)")
    second = (
        "Adapt-Parallel",
        "Adapt-Sequential",
        "BitFit",
        "VPT-Deep",
        "LoRA r = 8",
        "LoRA r = 16",
        "DiffFit",
    )
    one = (profile.ablated,)

    def row(method: Method, datasets: tuple[str, ...], name: str | None = None, **recipe: Any) -> Row:
        return Row(name or method.name, {each: cells(profile, method, each, **recipe) for each in datasets})

    def affiner(name: str, **config: Any) -> Row:
        return row(Method(name, "affiner", {"rank": profile.rank} | config, ours.lr), one)

    parts = [
        affiner("b", parts=["b"]),
        affiner("a", parts=["a"]),
        affiner("a, b", parts=["a", "b"]),
        affiner("low-rank", parts=["low-rank"]),
        affiner("all"),
        *(affiner(f"all, d = {rank}", rank=rank) for rank in profile.ranks),
    ]
    places = [(0, 1), (0, 2), (0, 4), (2, 2)]
    gamma = [
        row(
            Method(f"γ in {blocks} block(s) from block {start + 1}", "difffit", _gamma(start, blocks), 3e-3),
            one,
        )
        for start, blocks in places
    ]
    ladder = [
        row(every["DiffFit"], one, f"learning rate × {factor:g}", lr=3e-3 * factor, class_lr=3e-2 * factor)
        for factor in (0.1, 0.2, 1, 2, 5, 10, 20)
    ]
    masks = [row(ours, one, f"{ratio:.0%} masked", mask_ratio=ratio) for ratio in (0.0, 0.25, 0.5, 0.75)]
    told = [
        Row(name, {profile.ablated: cells(profile, every[name], profile.ablated, condition=CANNY)})
        for name in ("full fine-tuning", "LoRA r = 8", ours.name)
    ]
    return [
        Table(
            "methods",
            "Methods × datasets",
            "DiffScaler, Table 1",
            [row(every[n], profile.datasets) for n in first],
        ),
        Table(
            "baselines", "Baselines", "DiffFit, Table 1", [row(every[n], profile.datasets) for n in second]
        ),
        Table("parts", "Parts of the Affiner, and d", "DiffScaler, Table 3", parts),
        Table("canny", "A spatial condition: canny", "DiffScaler, Table 2", told, ("canny.f1", "FD", "KD")),
        Table("gamma", "Where γ is", "DiffFit, Table 4 a, b", gamma),
        Table("rates", "Learning rate of DiffFit", "DiffFit, Table 4 d", ladder),
        Table("masks", "Masking ratio", "DiffScaler, §3.3", masks),
        Table(
            "cnn",
            "The same on a CNN",
            "DiffScaler, Table 1, the rows of the CNN",
            [row(every[n], profile.datasets) for n in cnn],
        ),
    ]


def _gamma(start: int, blocks: int) -> dict[str, int]:
    return {"first_block": start, "blocks": blocks}


def cells(
    profile: Profile, method: Method, dataset: str, condition: dict[str, Any] | None = None, **recipe: Any
) -> list[Cell]:
    """One cell a seed."""
    whole = {
        "steps": profile.steps,
        "batch": profile.batch,
        "lr": method.lr,
        "class_lr": method.class_lr,
        "mask_ratio": 0.0 if method.backbone == "unet" or condition else 0.5,
        "precision": "fp32",
    } | recipe
    return [
        Cell(method.backbone, dataset, method.kind, method.config, whole | {"seed": seed}, condition)
        for seed in range(profile.seeds)
    ]

"""How long everything takes, and on what: to see that it runs, in short, in earnest, as in the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SMALL_RATES = {"full": 3e-4, "": 3e-3}
SHORT_RATES = {"full": 3e-3, "": 3e-2}


@dataclass(frozen=True)
class Profile:
    """steps: of methods × datasets, of their learning rates and of the masking ratios; later_steps: of all
    else, where those differ.

    rank: the Affiner's d, ranks: those of its ablation; prompted: blocks with VPT's tokens. rates: learning
    rates by kind, that of all others under the empty name; class_lr: of the class rows. seeds: of methods ×
    datasets; costly_seeds: of the sequences and of the CNN, where they are others; later_seeds: of the
    ablations. ablated: their dataset; detailed: that of the spatial condition and of the higher resolution;
    mapped: that with maps; compared: those of the baselines, all where none is named; masked: those of the
    masking ratios, the ablated one where none is named. mask_ratio: of everything else without a condition,
    on transformers. gamma: (first block, blocks). told_steps, told_batch: of a spatial condition.
    pretraining: the dataset that the backbones are pretrained on; shipped: the transformer is the one that
    comes with Affinery instead; local: backbones and datasets are folders of the user's.
    """

    steps: int
    batch: int
    samples: int
    sampler_steps: int
    seeds: int
    datasets: tuple[str, ...]
    ablated: str
    detailed: str
    orders: tuple[tuple[str, ...], ...]
    size: int = 16
    channels: int = 1
    width: int = 192
    pretraining: str = ""
    pretraining_steps: int = 0
    pretraining_batch: int = 128
    costly_seeds: int | None = None
    later_seeds: int = 1
    later_steps: int | None = None
    compared: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    mask_ratio: float = 0.5
    mapped: str = "silhouettes"
    rank: int = 8
    ranks: tuple[int, ...] = (1, 4, 16, 64)
    prompted: int = 4
    gamma: tuple[tuple[int, int], ...] = ((0, 1), (0, 2), (0, 4), (2, 2))
    guidance: float = 2.0
    rates: Mapping[str, float] | None = None
    class_lr: float = 3e-2
    shipped: bool = False
    local: bool = False
    told_steps: int | None = None
    told_batch: int | None = None

    @property
    def beside(self) -> int:
        """Seeds of the sequences and of the CNN."""
        return self.costly_seeds or self.seeds

    def rate(self, kind: str) -> float:
        rates = self.rates or SMALL_RATES
        return rates.get(kind, rates[""])


ORDERS = (
    ("digits", "letters", "animals"),
    ("letters", "animals", "digits"),
    ("animals", "digits", "letters"),
)
PROFILES = {
    # To see that everything runs: no figure of it means anything.
    "quick": Profile(
        *(3, 4, 8, 2, 1),
        datasets=("digits", "letters"),
        ablated="digits",
        detailed="letters",
        orders=(("digits", "letters"),),
        width=48,
        pretraining="letters",
        pretraining_steps=3,
        pretraining_batch=64,
        ranks=(1, 4),
    ),
    # On the transformer that comes with Affinery: all tables in about two hours of one processor.
    "short": Profile(
        *(400, 32, 256, 10, 4),
        costly_seeds=2,
        later_steps=120,
        datasets=("twemoji", "animals", "letters", "digits"),
        ablated="digits",
        detailed="animals",
        orders=ORDERS,
        pretraining="noto",
        pretraining_steps=800,
        pretraining_batch=32,
        compared=("digits",),
        masked=("digits", "animals"),
        mask_ratio=0.0,
        guidance=1.5,
        rates=SHORT_RATES,
        shipped=True,
    ),
    # In colour and 32 × 32, on a backbone of its own: half an hour of one processor for methods × datasets.
    "colour": Profile(
        *(150, 32, 128, 20, 1),
        datasets=("twemoji", "animals", "letters", "digits"),
        ablated="twemoji",
        detailed="twemoji",
        orders=ORDERS,
        size=32,
        channels=3,
        width=128,
        pretraining="noto",
        pretraining_steps=2000,
        pretraining_batch=32,
        guidance=1.5,
        rates=SHORT_RATES,
    ),
    # The same in earnest: hours on a CPU, minutes a table on a GPU.
    "small": Profile(
        *(2000, 64, 500, 50, 2),
        datasets=("twemoji", "animals", "letters", "digits"),
        ablated="twemoji",
        detailed="twemoji",
        orders=ORDERS,
        size=32,
        channels=3,
        pretraining="noto",
        pretraining_steps=20_000,
        later_seeds=2,
    ),
    # The papers' own, on DiT-XL/2 and Stable Diffusion 1.5.
    "paper": Profile(
        *(50_000, 16, 5000, 100, 2),
        datasets=("cub", "flowers", "ffhq", "caltech"),
        ablated="ffhq",
        detailed="coco",
        orders=(("cub", "flowers", "caltech"), ("flowers", "caltech", "cub"), ("caltech", "cub", "flowers")),
        rank=64,
        prompted=5,
        gamma=((0, 7), (0, 14), (0, 28), (14, 14)),
        guidance=1.5,
        rates={"full": 1e-4, "": 1e-3},
        class_lr=1e-3,
        local=True,
        told_steps=10_000,
        told_batch=4,
    ),
}

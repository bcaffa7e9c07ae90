"""How a task is trained: the numbers that a run is reproduced from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from affinery.errors import ConfigInvalid, near

WHOLE_NUMBERS = {
    "steps": (1, 100_000_000),
    "batch": (1, 1_000_000),
    "warmup": (0, 100_000_000),
    "seed": (0, 2**63 - 1),
    "accumulate": (1, 1_000_000),
    "patience": (0, 100_000_000),
}
FRACTIONS = {"mask_ratio", "unmasked_share", "label_dropout", "ema_decay"}
POSITIVE = {"lr", "class_lr", "clip_norm"}
LARGEST = sys.float_info.max
CHOICES = {
    "precision": ("auto", "fp32", "bf16"),
    "recompute": ("none", "cheap", "block"),
    "compile": ("none", "blocks"),
    "graphs": ("off", "on"),
    "deterministic": ("off", "on"),
}


@dataclass(frozen=True)
class Recipe:
    """The settings of one training.

    batch: samples a task and step. mask_ratio: share of the tokens dropped before the first block
    (DiffScaler, §3.3), except in the last `unmasked_share` of the steps. class_lr: the class rows' own
    learning rate. label_dropout: share of samples trained without their class, for guidance. ema_decay: of
    the adapter only.

    patience: a task whose running loss has not fallen for so many steps goes on to its finish, the last
    `unmasked_share` of its schedule; 0: never. accumulate: passes that a step's batch is computed in.
    precision: of the passes, bf16 meaning autocast beside 32-bit tensors of the adapter; auto: bf16 on a GPU
    that has it. recompute: what the backward pass computes again instead of keeping it. compile: whether
    torch.compile compiles the blocks. graphs: CUDA graphs. deterministic: only algorithms that always sum in
    one order.
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 1e-3
    class_lr: float = 1e-2
    warmup: int = 20
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    mask_ratio: float = 0.5
    unmasked_share: float = 0.2
    label_dropout: float = 0.1
    ema_decay: float = 0.99
    seed: int = 0
    patience: int = 0
    accumulate: int = 1
    precision: str = "auto"
    recompute: str = "none"
    compile: str = "none"
    graphs: str = "off"
    deterministic: str = "off"

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigInvalid(name, f"{getattr(self, name)!r} is none of {', '.join(choices)}.")
        if self.accumulate > self.batch:
            raise ConfigInvalid("accumulate", f"{self.accumulate} passes cannot share {self.batch} samples.")
        if self.compile != "none" and self.recompute == "cheap":
            raise ConfigInvalid("recompute", "a compiler decides itself what is cheap; leave it at none.")

    def _check_numbers(self) -> None:
        for name, (least, most) in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigInvalid(name, f"{value!r} is not a whole number from {least} to {most}.")
        for name in FRACTIONS | POSITIVE | {"weight_decay"}:
            if type(getattr(self, name)) not in (int, float):
                raise ConfigInvalid(name, f"{getattr(self, name)!r} is not a number.")
        for name in sorted(FRACTIONS):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 1 and name != "unmasked_share"):
                raise ConfigInvalid(name, f"{value} is not between 0 and 1.")
        if not 0 <= self.weight_decay < 1e3:
            raise ConfigInvalid("weight_decay", f"{self.weight_decay} is not zero or a positive number.")
        for name in sorted(POSITIVE):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigInvalid(name, f"{getattr(self, name)} is not a positive number.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises ConfigInvalid on a setting that does not exist or has the wrong type."""
        known = {field.name: field for field in fields(cls)}
        typed: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise ConfigInvalid("recipe", f"there is no setting {name!r}.{near(name, known)}")
            if name in CHOICES:
                typed[name] = value
                continue
            whole = isinstance(known[name].default, int)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
            if not number or (whole and value != int(value)):
                raise ConfigInvalid(name, f"{value!r} is not a {'whole number' if whole else 'number'}.")
            typed[name] = int(value) if whole else float(value)
        return cls(**typed)

    @property
    def finish(self) -> int:
        """Where in the schedule the finish begins: the last `unmasked_share` of the steps."""
        return round(self.steps * (1 - self.unmasked_share))

    def rate(self, step: int) -> float:
        """The factor on every learning rate: linear warm-up, then linear decay to zero."""
        return min(1.0, (step + 1) / max(1, self.warmup)) * (self.steps - step) / self.steps

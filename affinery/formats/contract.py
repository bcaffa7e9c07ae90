"""What an export format is: a model written for others to read, then read back and compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery.errors import ConfigInvalid, ExportDiffers

if TYPE_CHECKING:
    from torch import Tensor

    from affinery.composed import ComposedModel

TOLERANCE = 1e-4  # of the largest value: what other orders of summation cost in float32


@dataclass(frozen=True)
class Shipment:
    """What is exported. task: the one of a format that takes one. facts: whence it came, as files say it."""

    model: ComposedModel
    task: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def one_task(self, what: str) -> str:
        """The task that is meant, of several or the only one. Raises ConfigInvalid and UnknownName."""
        known = list(self.model.slots)
        if self.task is not None:
            return self.model.task(self.task).meta.task
        if len(known) == 1:
            return known[0]
        raise ConfigInvalid("--task", f"{what} holds one task; name one of {', '.join(known)}.")


class Format(ABC):
    """One format. A file in this folder offers it as `FORMAT`."""

    @abstractmethod
    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        """Writes it into a folder that is there and empty. → notes for whoever exports

        Raises ConfigInvalid where the format cannot say what the model does.
        """

    @abstractmethod
    def compare(self, shipment: Shipment, folder: Path) -> float:
        """Loads what was written as its readers do. → how far it is from the model, of the largest value"""


def checked(difference: float, name: str) -> float:
    """Raises ExportDiffers where a format, loaded back, computes something else."""
    if not difference <= TOLERANCE:
        raise ExportDiffers(name, difference, TOLERANCE)
    return difference


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = max(float(ours.abs().max()), 1e-30)
    return float((ours.double() - theirs.double()).abs().max()) / scale

"""safetensors: one task folded into full weights, as a backbone file that Affinery and others read.

model.safetensors    the weights; its metadata hold the spec, the task's classes among its own
"""

from __future__ import annotations

from pathlib import Path

from affinery.backbones.files import load_backbone, save_backbone
from affinery.formats.contract import Format, Shipment
from affinery.formats.folded import compared, folded_backbone

WEIGHTS = "model.safetensors"


class Safetensors(Format):
    """Full weights."""

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        task = shipment.one_task("full weights")
        save_backbone(folded_backbone(shipment.model, task), folder / WEIGHTS)
        return (f"labels: the backbone's classes, then {task}'s, then “no class”.",)

    def compare(self, shipment: Shipment, folder: Path) -> float:
        task = shipment.one_task("full weights")
        return compared(shipment.model, task, load_backbone(folder / WEIGHTS))


FORMAT = Safetensors()

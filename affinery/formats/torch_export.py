"""torch-export: one `ExportedProgram` that mixes tasks in a batch, and runs where torch alone is installed.

model.pt2    torch.export.load(…).module()(latent, timestep, label, task)
model.json   which numbers mean which tasks and classes, and the scheduler
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from affinery import tensor_files
from affinery.formats.contract import Format, Shipment, distance
from affinery.formats.probe import probe
from affinery.formats.program import asked, described, exported

PROGRAM, DESCRIPTION = "model.pt2", "model.json"
SIZES = (1, 2, 7)  # of batches that are compared


class TorchExport(Format):
    """The graph as torch keeps it."""

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        with torch.no_grad():
            torch.export.save(exported(shipment.model), folder / PROGRAM)  # a zip of JSON and weights
        body = json.dumps(described(shipment), indent=1, ensure_ascii=False).encode()
        tensor_files.write_whole(folder / DESCRIPTION, body)
        return ()

    def compare(self, shipment: Shipment, folder: Path) -> float:
        model = shipment.model
        run = torch.export.load(folder / PROGRAM).module()
        found = []
        for size in SIZES:
            wanted = probe(model, [None, *model.slots], size, seed=size)
            with torch.no_grad():
                found.append(distance(wanted.answer(model), run(*asked(model, wanted))))
        return max(found)


FORMAT = TorchExport()

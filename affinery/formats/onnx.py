"""onnx: the graph of torch-export in ONNX, checked with onnxruntime.

model.onnx (and model.onnx.data where it is large), model.json
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from affinery import tensor_files
from affinery.formats.contract import Format, Shipment, distance
from affinery.formats.probe import probe
from affinery.formats.program import INPUTS, asked, described, exported
from affinery.formats.torch_export import DESCRIPTION, SIZES
from affinery.optional import needed

GRAPH = "model.onnx"


class Onnx(Format):
    """The graph in ONNX."""

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            needed(module, "the format onnx")
        with torch.no_grad():
            program = torch.onnx.export(
                exported(shipment.model),
                input_names=list(INPUTS),
                output_names=["prediction"],
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        program.save(folder / GRAPH)
        body = json.dumps(described(shipment), indent=1, ensure_ascii=False).encode()
        tensor_files.write_whole(folder / DESCRIPTION, body)
        return ()

    def compare(self, shipment: Shipment, folder: Path) -> float:
        model = shipment.model
        runtime = needed("onnxruntime", "the format onnx")
        session = runtime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
        found = []
        for size in SIZES:
            wanted = probe(model, [None, *model.slots], size, seed=size)
            given = dict(zip(INPUTS, (t.numpy() for t in asked(model, wanted)), strict=True))
            (prediction,) = session.run(None, given)
            found.append(distance(wanted.answer(model), torch.from_numpy(prediction)))
        return max(found)


FORMAT = Onnx()

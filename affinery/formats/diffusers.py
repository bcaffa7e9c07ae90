"""diffusers: a pipeline folder.

With one task that folds (`--task`), on a latent DiT of diffusers' profile: what plain `DiTPipeline` loads. It
takes row 1000 for "no class", so the table is laid out for that: the backbone's classes, the null row up to
1000, then the task's classes. The table is written to every block.

Else: a folder with `pipeline.py`, the graph of torch-export and the scheduler, which diffusers loads as a
custom pipeline and in which every sample names its task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from affinery import tensor_files
from affinery.backbones.contract import Backbone
from affinery.backbones.dit import DiT
from affinery.backbones.dit_conversion import from_native
from affinery.backbones.dit_diffusers import DiffusersDiT, to_diffusers
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.errors import ConfigInvalid
from affinery.formats.contract import Format, Shipment, distance
from affinery.formats.folded import folded_backbone
from affinery.formats.probe import probe
from affinery.formats.program import scheduler_config
from affinery.formats.torch_export import FORMAT as GRAPH

NULL = 1000  # what DiTPipeline asks for under guidance
FIRST = NULL + 1  # the label of the task's first class
PIPELINE = "pipeline.py"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Diffusers(Format):
    """A pipeline folder."""

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        model = shipment.model
        _json(folder / "scheduler" / "scheduler_config.json", scheduler_config(model))
        if shipment.task is not None:
            task = shipment.one_task("a plain pipeline")
            _plain(model, task, folder)
            return (f"{task}'s labels begin at {FIRST}; ask with guidance_scale > 1 as usual.",)
        GRAPH.write(shipment, folder)
        _vae(model.backbone, folder)
        source = files("affinery.formats").joinpath("pipelines/routed.py").read_text()
        tensor_files.write_whole(folder / PIPELINE, source.encode())
        index: dict[str, Any] = {
            "_class_name": ["pipeline", "RoutedPipeline"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
        if model.backbone.vae is not None:
            index["vae"] = ["diffusers", "AutoencoderKL"]
        latent = model.spec.latent
        if latent is not None:
            index |= {"scaling": latent.scaling, "shift": latent.shift}
        _json(folder / "model_index.json", index)
        return ("load it with custom_pipeline=<folder>: it brings a file of its own, pipeline.py.",)

    def compare(self, shipment: Shipment, folder: Path) -> float:
        if shipment.task is not None:
            return _compare_plain(shipment.model, shipment.one_task("a plain pipeline"), folder)
        return max(GRAPH.compare(shipment, folder), _compare_routed(shipment.model, folder))


def _plain(model: ComposedModel, task: str, folder: Path) -> None:
    """Writes what DiTPipeline loads. Raises ConfigInvalid where it cannot say what the model does."""
    if model.spec.latent is None or model.backbone.vae is None or model.spec.latent.shift:
        raise ConfigInvalid(
            "format",
            "DiTPipeline draws latents through a VAE. Leave --task out for a pipeline file.",
        )
    if model.null_row > NULL:
        raise ConfigInvalid(
            "format", f"DiTPipeline takes row {NULL} for “no class”, which is a class of this backbone."
        )
    backbone = folded_backbone(model, task)
    if isinstance(backbone, DiT):
        backbone = from_native(backbone)
    if not isinstance(backbone, DiffusersDiT):
        raise ConfigInvalid("format", f"diffusers has no pipeline for one task of {model.spec.arch}.")
    config, tensors = to_diffusers(backbone)
    table = _laid_out(model, task)
    for name in [name for name in tensors if name.endswith("class_embedder.embedding_table.weight")]:
        tensors[name] = table.clone()
    config |= {"num_embeds_ada_norm": len(table) - 1, "_null_index": NULL, "_layout": "append"}
    _json(folder / "transformer" / "config.json", config)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "transformer" / WEIGHTS)
    _vae(model.backbone, folder)
    names = dict(enumerate(model.spec.class_names)) | dict(
        enumerate(model.task(task).meta.class_names, start=FIRST)
    )
    index = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "id2label": {str(row): name for row, name in names.items()},
    }
    _json(folder / "model_index.json", index)


def _laid_out(model: ComposedModel, task: str) -> Tensor:
    """(NULL + 1 + M, D): the backbone's classes, its null row up to NULL, the task's classes."""
    own = model.backbone.class_table.detach()
    null = own[model.null_row :][:1].expand(NULL + 1 - model.null_row, -1)
    return torch.cat([own[: model.null_row], null, model.task(task).rows.detach().to(own.dtype)])


def _vae(backbone: Backbone, folder: Path) -> None:
    if backbone.vae is not None:
        backbone.vae.save_pretrained(folder / "vae", safe_serialization=True)
        config = json.loads((folder / "vae" / "config.json").read_text())
        latent = backbone.spec.latent
        _json(folder / "vae" / "config.json", config | {"scaling_factor": latent.scaling if latent else 1.0})


def _json(path: Path, value: Mapping[str, Any]) -> None:
    tensor_files.write_whole(path, json.dumps(value, indent=2, ensure_ascii=False).encode())


@torch.no_grad()
def _compare_plain(model: ComposedModel, task: str, folder: Path) -> float:
    """The transformer that diffusers loads, asked for the task's classes and for none."""
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(folder, use_safetensors=True)
    asked = probe(model, [task])
    low, _ = model.task(task).meta.block
    rows = asked.rows.tolist()
    labels = torch.tensor([NULL if row == model.null_row else FIRST + row - low for row in rows])
    theirs = pipeline.transformer(asked.x, timestep=asked.t, class_labels=labels).sample
    return distance(asked.answer(model), theirs)


def _compare_routed(model: ComposedModel, folder: Path) -> float:
    """Two steps of every task in one batch, through the pipeline as diffusers loads it."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(folder), trust_remote_code=True, use_safetensors=True
    )
    names = list(model.slots)
    classes = [model.task(name).meta.class_names[-1] for name in names]
    seeds = list(range(len(names)))
    theirs = pipeline(
        names, classes, seeds=seeds, num_inference_steps=2, guidance_scale=2.0, output_type="pt"
    )
    draws = [
        Draw(name, model.task(name).row(label), seed)
        for name, label, seed in zip(names, classes, seeds, strict=True)
    ]
    return distance(sample(model, draws, SamplerSettings(2, 2.0)), theirs.images * 2 - 1)


FORMAT = Diffusers()

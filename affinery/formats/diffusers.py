"""diffusers: a pipeline folder.

With one task that folds (`--task`): what a plain pipeline loads, `DiTPipeline` (`plain_dit.py`),
`DDIMPipeline` or `StableDiffusionPipeline` (`plain_unet.py`).

Else: a folder with `pipeline.py`, the graph of torch-export and the scheduler, which diffusers loads as a
custom pipeline and in which every sample names its task.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from affinery import tensor_files
from affinery.backbones.patch_transformer import PatchTransformer
from affinery.backbones.unet_stages import UNet
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.errors import ConfigInvalid
from affinery.formats import plain_dit, plain_unet
from affinery.formats.contract import Format, Shipment, distance
from affinery.formats.pipeline_files import OTHERWISE, loaded, write_json, write_vae
from affinery.formats.program import scheduler_config
from affinery.formats.torch_export import FORMAT as GRAPH

PIPELINE = "pipeline.py"


class Diffusers(Format):
    """A pipeline folder."""

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        model = shipment.model
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(model))
        if shipment.task is not None:
            task = shipment.one_task("a plain pipeline")
            notes: tuple[str, ...] = _plain(model).write(model, task, folder)
            return notes
        GRAPH.write(shipment, folder)
        write_vae(model.backbone, folder)
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
        write_json(folder / "model_index.json", index)
        return ("load it with custom_pipeline=<folder>: it brings a file of its own, pipeline.py.",)

    def compare(self, shipment: Shipment, folder: Path) -> float:
        if shipment.task is not None:
            task = shipment.one_task("a plain pipeline")
            return float(_plain(shipment.model).compare(shipment.model, task, folder))
        return max(GRAPH.compare(shipment, folder), _compare_routed(shipment.model, folder))


def _plain(model: ComposedModel) -> ModuleType:
    """What writes one task of this backbone for a plain pipeline. Raises ConfigInvalid."""
    if isinstance(model.backbone, PatchTransformer):
        return plain_dit
    if isinstance(model.backbone, UNet):
        return plain_unet
    raise ConfigInvalid("format", f"diffusers has no pipeline for one task of {model.spec.arch}. {OTHERWISE}")


def _compare_routed(model: ComposedModel, folder: Path) -> float:
    """Two steps of every task in one batch, through the pipeline as diffusers loads it."""
    names = list(model.slots)
    classes = [model.task(name).meta.class_names[-1] for name in names]
    seeds = list(range(len(names)))
    with loaded(folder, custom_pipeline=str(folder), trust_remote_code=True) as pipeline:
        theirs = pipeline(
            names, classes, seeds=seeds, num_inference_steps=2, guidance_scale=2.0, output_type="pt"
        )
    draws = [
        Draw(name, model.task(name).row(label), seed)
        for name, label, seed in zip(names, classes, seeds, strict=True)
    ]
    return distance(sample(model, draws, SamplerSettings(2, 2.0)), theirs.images * 2 - 1)


FORMAT = Diffusers()

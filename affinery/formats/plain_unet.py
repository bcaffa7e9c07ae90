"""One task of a U-Net as the folder of a plain diffusers pipeline.

`UNet2DModel` on pixels: what `DDIMPipeline` loads. `UNet2DConditionModel` on latents: what
`StableDiffusionPipeline` loads, the text encoder and the tokenizer left to whoever has them. Neither pipeline
passes labels, so a task of one class goes, whose row is added to the bias of the time embedding's last layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affinery.backbones.unet_stages import UNet
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from affinery.formats.contract import distance
from affinery.formats.folded import folded_backbone
from affinery.formats.pipeline_files import OTHERWISE, loaded, write_json, write_vae
from affinery.formats.probe import probe
from affinery.formats.program import scheduler_config

BIAS = "time_embedding.linear_2.bias"
OTHERS = ("vae.", "text.", "class_embedding.")  # tensors that are not the network's own
LEFT_OUT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
STABLE = {"clip_sample": False, "steps_offset": 1}  # what StableDiffusionPipeline makes of every scheduler


def write(model: ComposedModel, task: str, folder: Path) -> tuple[str, ...]:
    """→ notes. Raises ConfigInvalid where the pipeline would draw something else."""
    _check(model, task)
    folded = folded_backbone(model, task)
    assert isinstance(folded, UNet)
    side = model.spec.latent_shape()[1]
    network = folded.NETWORK(**folded.spec.config | {"sample_size": side})
    state = {name: t for name, t in folded.state_dict().items() if not name.startswith(OTHERS)}
    state[BIAS] = state[BIAS] + model.task(task).rows[0].detach().to(state[BIAS].dtype)
    network.load_state_dict(state, strict=True)
    network.save_pretrained(folder / "unet", safe_serialization=True)
    index: dict[str, Any] = {
        "_class_name": "DDIMPipeline",
        "unet": ["diffusers", folded.NETWORK.__name__],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    if model.spec.text is None:
        write_json(folder / "model_index.json", index)
        return ("DDIMPipeline draws without guidance.",)
    index |= {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    index |= {name: [None, None] for name in LEFT_OUT} | {"requires_safety_checker": False}
    write_json(folder / "model_index.json", index)
    write_vae(model.backbone, folder)
    own = scheduler_config(model)
    write_json(folder / "scheduler" / "scheduler_config.json", own | STABLE)
    notes = [
        "from_pretrained wants text_encoder= and tokenizer=, which are not in it, or None and prompt_embeds.",
        "guidance sets captions against none there; the class is in the weights, for both.",
    ]
    if own.get("clip_sample"):
        notes.append("StableDiffusionPipeline does not clip, as this backbone's own sampler does.")
    return tuple(notes)


def _check(model: ComposedModel, task: str) -> None:
    """Raises ConfigInvalid where the pipeline cannot say what the model does."""
    spec, latent = model.spec, model.spec.latent
    classes = len(model.task(task).meta.class_names)
    captions = spec.text is not None
    otherwise = "Take the format safetensors, or a bundle." if captions else OTHERWISE
    reason = None
    if classes > 1:
        reason = f"diffusers' pipelines of U-Nets pass no labels, and {task!r} has {classes} classes."
    elif captions and (latent is None or model.backbone.vae is None or latent.shift):
        reason = "StableDiffusionPipeline draws latents through a VAE, and here is none that it could use."
    elif not captions and latent is not None:
        reason = "DDIMPipeline draws pixels, and this U-Net draws latents."
    elif spec.config.get("out_channels") != spec.config.get("in_channels"):
        reason = "diffusers' pipelines of U-Nets take no learned variance."
    if reason is not None:
        raise ConfigInvalid("format", f"{reason} {otherwise}")


@torch.no_grad()
def compare(model: ComposedModel, task: str, folder: Path) -> float:
    """The U-Net that diffusers loads, with captions where it takes some."""
    asked = probe(model, [task])
    rows = torch.full_like(asked.rows, model.task(task).meta.block[0])
    text = _captions(model, len(rows))
    told = () if text is None else (text,)
    ours = model.denoise(asked.x, asked.t, rows, model.plan(asked.tasks), text=text)
    absent = {} if text is None else {"text_encoder": None, "tokenizer": None}
    with loaded(folder, **absent) as pipeline:
        return distance(ours, pipeline.unet(asked.x, asked.t, *told).sample)


def _captions(model: ComposedModel, count: int) -> Tensor | None:
    text = model.spec.text
    if text is None:
        return None
    return torch.randn(count, text.length, text.width, generator=torch.Generator().manual_seed(0))

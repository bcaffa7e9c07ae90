"""One task of a latent DiT as the folder that plain `DiTPipeline` loads.

It takes row 1000 for "no class", so the table is laid out for that: the backbone's classes, the null row up
to 1000, then the task's classes. The table is written to every block.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from affinery.backbones.dit import DiT
from affinery.backbones.dit_conversion import from_native
from affinery.backbones.dit_diffusers import DiffusersDiT, to_diffusers
from affinery.backbones.dit_spec import PROFILES
from affinery.backbones.patch_transformer import PatchTransformer
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from affinery.formats.contract import distance
from affinery.formats.folded import folded_backbone
from affinery.formats.pipeline_files import OTHERWISE, loaded, write_json, write_vae
from affinery.formats.probe import probe

NULL = 1000  # what DiTPipeline asks for under guidance
FIRST = NULL + 1  # the label of the task's first class
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(model: ComposedModel, task: str, folder: Path) -> tuple[str, ...]:
    """→ notes. Raises ConfigInvalid where DiTPipeline would draw something else."""
    backbone = model.backbone
    assert isinstance(backbone, PatchTransformer)
    _check(model, backbone)
    folded = folded_backbone(model, task)
    if isinstance(folded, DiT):
        folded = from_native(folded)
    assert isinstance(folded, DiffusersDiT)
    config, tensors = to_diffusers(folded)
    table = _laid_out(model, task)
    for name in [name for name in tensors if name.endswith("class_embedder.embedding_table.weight")]:
        tensors[name] = table.clone()
    config |= {"num_embeds_ada_norm": len(table) - 1, "_null_index": NULL, "_layout": "append"}
    write_json(folder / "transformer" / "config.json", config)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "transformer" / WEIGHTS)
    write_vae(backbone, folder)
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
    write_json(folder / "model_index.json", index)
    return (f"{task}'s labels begin at {FIRST}; ask with guidance_scale > 1 as usual.",)


def _check(model: ComposedModel, backbone: PatchTransformer) -> None:
    """Raises ConfigInvalid where DiTPipeline cannot say what the model does."""
    reason = None
    if model.spec.latent is None or backbone.vae is None or model.spec.latent.shift:
        reason = "DiTPipeline draws latents through a VAE, and this backbone has none that it could use."
    elif model.null_row > NULL:
        reason = f"DiTPipeline takes row {NULL} for “no class”, which is a class of this backbone."
    elif backbone.profile != PROFILES["diffusers"]:
        own = backbone.config.profile
        reason = f"this DiT is of the profile {own!r}, and diffusers computes time steps otherwise."
    elif backbone.config.mlp_ratio != 4:
        reason = f"diffusers' DiT has the mlp_ratio 4 alone, and this one's is {backbone.config.mlp_ratio:g}."
    if reason is not None:
        raise ConfigInvalid("format", f"{reason} {OTHERWISE}")


def _laid_out(model: ComposedModel, task: str) -> Tensor:
    """(NULL + 1 + M, D): the backbone's classes, its null row up to NULL, the task's classes."""
    own = model.backbone.class_table.detach()
    null = own[model.null_row :][:1].expand(NULL + 1 - model.null_row, -1)
    return torch.cat([own[: model.null_row], null, model.task(task).rows.detach().to(own.dtype)])


@torch.no_grad()
def compare(model: ComposedModel, task: str, folder: Path) -> float:
    """The transformer that diffusers loads, asked for the task's classes and for none."""
    asked = probe(model, [task])
    low, _ = model.task(task).meta.block
    rows = asked.rows.tolist()
    labels = torch.tensor([NULL if row == model.null_row else FIRST + row - low for row in rows])
    with loaded(folder) as pipeline:
        theirs = pipeline.transformer(asked.x, timestep=asked.t, class_labels=labels).sample
    return distance(asked.answer(model), theirs)

"""What every folder of a diffusers pipeline holds beside its network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affinery import tensor_files
from affinery.backbones.contract import Backbone
from affinery.importing import IMPORTING

OTHERWISE = "Name no task: the pipeline file draws every task. Or take the format safetensors."


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    tensor_files.write_whole(path, json.dumps(value, indent=2, ensure_ascii=False).encode())


def write_vae(backbone: Backbone, folder: Path) -> None:
    """The VAE, where the backbone has one, with the latents' scaling."""
    if backbone.vae is None:
        return
    backbone.vae.save_pretrained(folder / "vae", safe_serialization=True)
    config = json.loads((folder / "vae" / "config.json").read_text())
    latent = backbone.spec.latent
    write_json(folder / "vae" / "config.json", config | {"scaling_factor": latent.scaling if latent else 1.0})


@contextmanager
def loaded(folder: Path, **given: Any) -> Iterator[Any]:
    """What diffusers loads from a folder, without its bars. given: as `from_pretrained` takes it."""
    with IMPORTING:
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **given)
        pipeline.set_progress_bar_config(disable=True)
        yield pipeline
    finally:
        logging.enable_progress_bar()

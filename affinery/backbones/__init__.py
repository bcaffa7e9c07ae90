"""Backbones, one file each: a file here that defines `BACKBONE` is an architecture of that file's name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from affinery.errors import UnknownName
from affinery.importing import IMPORTING

if TYPE_CHECKING:
    from affinery.backbones.contract import Backbone

SHARED = {
    "contract",
    "diffusers_folder",
    "diffusers_schedule",
    "dit_conversion",
    "dit_spec",
    "files",
    "foreign_tensors",
    "imports",
    "latent_space",
    "model_folder",
    "network_config",
    "official_dit",
    "patch_transformer",
    "text_encoder",
    "unet_stages",
}


def architectures() -> list[str]:
    """The names of all architectures, found by looking into this folder."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in SHARED)


def architecture(name: str) -> type[Backbone]:
    """The class of one architecture. Raises UnknownName."""
    if name not in architectures():
        raise UnknownName("backbone architecture", name, architectures())
    with IMPORTING:
        found: type[Backbone] = import_module(f"{__name__}.{name}").BACKBONE
    return found

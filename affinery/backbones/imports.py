"""Anything that holds a backbone, turned into a backbone file: what others write, and our own files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from affinery.backbones.contract import Backbone
from affinery.backbones.files import SPEC_KEY, save_backbone
from affinery.backbones.model_folder import OnNote
from affinery.importing import IMPORTING
from affinery.tensor_files import NotSafetensors, read_header

PICKLES = (".pt", ".pth", ".ckpt")
OFFICIAL = "x_embedder.proj.weight"  # in every checkpoint of the official DiT


def import_backbone(path: Path, on_note: OnNote = lambda _: None) -> Backbone:
    """The frozen backbone in a diffusers folder or an official DiT checkpoint. Raises BackboneFileInvalid."""
    if path.is_dir():
        from affinery.backbones.diffusers_folder import read_folder

        return read_folder(path, on_note)
    with IMPORTING:
        from affinery.backbones.official_dit import read_official

    return read_official(path)


@contextmanager
def as_backbone_file(path: Path, on_note: OnNote = lambda _: None) -> Iterator[Path]:
    """A backbone file of what is at a path: itself, or one that is gone again after the `with`.

    Raises BackboneFileInvalid where a conversion is needed and fails; a backbone file is not checked.
    """
    if not _is_foreign(path):
        yield path
        return
    backbone = import_backbone(path, on_note)
    with tempfile.TemporaryDirectory(prefix="affinery-") as folder:
        converted = Path(folder) / "backbone.safetensors"
        save_backbone(backbone, converted)
        yield converted


def _is_foreign(path: Path) -> bool:
    """Whether what is there has to be converted; a broken file is left to the check of backbone files."""
    if path.is_dir() or path.suffix in PICKLES:
        return path.exists()
    try:
        header = read_header(path)
    except (OSError, NotSafetensors):
        return False
    return SPEC_KEY not in header.metadata and OFFICIAL in header.tensors

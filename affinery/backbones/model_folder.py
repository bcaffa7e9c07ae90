"""A model's folder as diffusers and transformers write it: its config.json beside its safetensors weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from affinery.errors import BackboneFileInvalid, words_of
from affinery.tensor_files import Header, NotSafetensors, read_header, read_json

JSON_LIMIT_BYTES = 64_000_000
STEMS = ("diffusion_pytorch_model", "model")
ENDINGS = (".safetensors", ".safetensors.index.json", ".fp16.safetensors", ".safetensors.index.fp16.json")
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.bin.index.json")
# Attention layers of the first checkpoints had other names; diffusers renames them too.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")

OnNote = Callable[[str], None]
ReadTensors = Callable[[Path, OnNote], dict[str, Tensor]]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of others. Raises BackboneFileInvalid."""
    try:
        if path.stat().st_size > JSON_LIMIT_BYTES:
            raise BackboneFileInvalid(str(path), "it is too large for what it should be.")
        found = read_json(path.read_bytes())
    except OSError as error:
        raise BackboneFileInvalid(str(path), f"it cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise BackboneFileInvalid(str(path), f"it is not readable JSON: {words_of(error)}.") from error
    if not isinstance(found, dict):
        raise BackboneFileInvalid(str(path), "it holds no JSON object.")
    return found


def read_weights(folder: Path, on_note: OnNote) -> dict[str, Tensor]:
    """All tensors of a model's folder, by name, as 32-bit floats. Raises BackboneFileInvalid."""
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        _header(file)
        state |= load_file(file)
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} - {torch.float32}
    if kinds:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        on_note(f"{folder}: its weights are {names}; they are stored as float32.")
    return {_current(name): _float32(folder, name, tensor) for name, tensor in state.items()}


def read_shapes(folder: Path, _on_note: OnNote) -> dict[str, Tensor]:
    """As `read_weights`, from the headers alone: tensors on the meta device. Raises BackboneFileInvalid."""
    return {
        _current(name): torch.empty(
            entry.shape, device="meta", dtype=torch.float32 if "F" in entry.dtype else torch.int64
        )
        for file in _weight_files(folder)
        for name, entry in _header(file).tensors.items()
    }


def _header(file: Path) -> Header:
    try:
        return read_header(file)
    except (OSError, NotSafetensors) as error:
        raise BackboneFileInvalid(str(file), f"{words_of(error)}.") from error


def _float32(folder: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise BackboneFileInvalid(str(folder), f"its tensor {name!r} holds values that are not finite.")
    return tensor.float() if tensor.is_floating_point() else tensor


def _current(name: str) -> str:
    old = OLD_NAME.fullmatch(name)
    return name if old is None else f"{old[1]}.{RENAMED[old[2]]}.{old[3]}"


def _weight_files(folder: Path) -> list[Path]:
    """The files of the weights, one or several shards; full precision where there is a choice."""
    for ending in ENDINGS:
        for stem in STEMS:
            found = folder / f"{stem}{ending}"
            if found.is_file():
                return _shards(found) if found.suffix == ".json" else [found]
    for pattern in PICKLES:
        for pickle in folder.glob(pattern):
            raise BackboneFileInvalid(
                str(folder),
                f"{pickle.name} is a pickle, which can run code when it is opened, so it is not. Where you "
                "trust it, load it with diffusers and save it: save_pretrained(…, safe_serialization=True).",
            )
    raise BackboneFileInvalid(str(folder), f"there is no {STEMS[0]}.safetensors, nor another weight file.")


def _shards(index: Path) -> list[Path]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise BackboneFileInvalid(str(index), "it has no weight_map of file names.")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BackboneFileInvalid(
                str(index), f"it names {name!r}, which is no safetensors file beside it."
            )
        if not (index.parent / name).is_file():
            raise BackboneFileInvalid(str(index), f"its shard {name} is missing; download the folder anew.")
    return [index.parent / name for name in names]

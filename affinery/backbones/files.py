"""Backbone files: one safetensors file whose metadata holds the `BackboneSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from affinery import tensor_files
from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, BackboneSpec, on_meta, parameter_count
from affinery.errors import BackboneFileInvalid, UnknownName, words_of

SPEC_KEY = "affinery.backbone"
DTYPES = {torch.float32: ("F32", "32-bit floats"), torch.uint8: ("U8", "bytes")}


@dataclass(frozen=True)
class BackboneFile:
    """A backbone file that was found whole: its spec, its fingerprint and how many parameters it has."""

    path: Path
    spec: BackboneSpec
    fingerprint: str
    parameters: int


def read_spec(path: Path) -> BackboneSpec:
    """The spec in a file's header. Raises BackboneFileInvalid."""
    try:
        header = tensor_files.read_header(path)
    except (OSError, tensor_files.NotSafetensors) as error:
        raise BackboneFileInvalid(str(path), _reason(error)) from error
    if SPEC_KEY not in header.metadata:
        raise BackboneFileInvalid(
            str(path), f"its metadata has no {SPEC_KEY!r} entry, so its architecture and classes are unknown."
        )
    try:
        return BackboneSpec.from_json(header.metadata[SPEC_KEY])
    except KeyError as error:
        raise BackboneFileInvalid(str(path), f"its spec lacks {error}.") from error
    except (TypeError, ValueError) as error:
        raise BackboneFileInvalid(str(path), f"its spec cannot be read: {error}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file."
    if isinstance(error, IsADirectoryError):
        return "it is a folder; give the .safetensors file."
    return f"{words_of(error)}."


def inspect_backbone(path: Path) -> BackboneFile:
    """Checks that the file holds exactly its architecture's tensors. Raises BackboneFileInvalid."""
    spec = read_spec(path)
    try:
        skeleton = on_meta(spec, architecture(spec.arch))
    except UnknownName as error:
        raise BackboneFileInvalid(str(path), str(error)) from error
    except Exception as error:  # a hostile or mistaken config may fail anywhere in a constructor
        raise BackboneFileInvalid(str(path), f"its config builds no {spec.arch}: {error}") from error
    _check_tensors(path, skeleton.state_dict())
    _check_values(path)
    if skeleton.text is not None:
        _check_vocabulary(path, spec)
    digest = tensor_files.fingerprint(path, spec.to_json())
    return BackboneFile(path, spec, digest, parameter_count(skeleton))


def _check_tensors(path: Path, needed: Mapping[str, Tensor]) -> None:
    """The file must hold these tensors, in their shapes: weights as F32, a vocabulary as bytes."""
    entries = tensor_files.read_header(path).tensors
    found = {name: entry.shape for name, entry in entries.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in needed.items()}
    if missing := sorted(expected.keys() - found.keys()):
        raise BackboneFileInvalid(str(path), f"{_some(missing)} missing, which its architecture needs.")
    if unknown := sorted(found.keys() - expected.keys()):
        raise BackboneFileInvalid(str(path), f"{_some(unknown)} there, which its architecture does not have.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise BackboneFileInvalid(
                str(path),
                f"tensor {name!r} has the shape {list(found[name])}, but the spec needs {list(shape)}.",
            )
        dtype, words = DTYPES[needed[name].dtype]
        if entries[name].dtype != dtype:
            raise BackboneFileInvalid(
                str(path),
                f"tensor {name!r} holds {entries[name].dtype}; convert it to {dtype} ({words}) first.",
            )


def _check_values(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            if not bool(file.get_tensor(name).isfinite().all()):
                raise BackboneFileInvalid(str(path), f"tensor {name!r} holds values that are not finite.")


def _check_vocabulary(path: Path, spec: BackboneSpec) -> None:
    from affinery.backbones.text_encoder import tokenizer

    assert spec.text is not None
    settings = spec.text.encoder or {}
    with safe_open(path, framework="pt") as file:
        vocab, merges = (bytes(file.get_tensor(name).numpy()) for name in ("text.vocab", "text.merges"))
    try:
        tokenizer(vocab, merges, settings["pad"], settings["clip"]["vocab_size"])
    except Exception as error:  # the library's own errors have no common base
        raise BackboneFileInvalid(str(path), f"its vocabulary is none: {error}") from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return f"tensor {names[0]!r}{more}"


def load_backbone(path: Path) -> Backbone:
    """The backbone of a file, frozen. Raises BackboneFileInvalid."""
    return load_checked(inspect_backbone(path))


def load_checked(checked: BackboneFile) -> Backbone:
    """The backbone of a file that was found whole, frozen."""
    backbone = on_meta(checked.spec, architecture(checked.spec.arch))
    backbone.load_state_dict(load_file(checked.path), strict=True, assign=True)
    return backbone.freeze()


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Writes the weights and the spec; the file is there whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    with tensor_files.written_whole(path) as part:
        save_file(state, part, metadata={SPEC_KEY: backbone.spec.to_json()})

"""Checkpoints in the layout of facebookresearch/DiT: `.pt`, or the same names in `.safetensors`.

Their names are those of the native DiT, so a checkpoint is read as it is; what it does not say is told from
its shapes, or asked for. Those that `write_official` writes also hold the spec, at which row "no class"
stands (`null_index`) and whether class rows come after it (`layout`): a table's shape cannot tell.
"""

from __future__ import annotations

import math
import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from affinery import tensor_files
from affinery.backbones.contract import BackboneSpec
from affinery.backbones.dit import DiT
from affinery.backbones.dit_spec import HEADS, PROFILES, DiTConfig, Facts, spec_of
from affinery.backbones.files import SPEC_KEY
from affinery.backbones.foreign_tensors import adopt, layout, null_last, with_rows
from affinery.errors import BackboneFileInvalid, ConfigInvalid, words_of

TABLE = "y_embedder.embedding_table.weight"
# Training keeps the weights beside their moving average, which is the one that draws well.
WEIGHTS = ("ema", "model")


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors, and what it says beside them."""

    tensors: dict[str, Tensor]
    spec: BackboneSpec | None
    null_index: int | None


def read_official(
    path: Path,
    *,
    heads: int | None = None,
    profile: str | None = None,
    null_index: int | None = None,
    vae: Mapping[str, Tensor] | None = None,
    **facts: Unpack[Facts],
) -> DiT:
    """The frozen backbone of a checkpoint.

    Shapes tell width, depth, patch, channels, classes, learned sigma and size, and heads where the width is
    an official one. null_index: the row that means "no class", where it is not the last; the rows after it
    become classes like those before it. vae: the state dict of the VAE that latent.vae describes. All else
    that is not given is as in the official checkpoints.

    Raises BackboneFileInvalid, or ConfigInvalid for a setting that cannot be.
    """
    source = str(path)
    checkpoint = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    tensors = checkpoint.tensors | {f"vae.{name}": tensor for name, tensor in (vae or {}).items()}
    sizes = _sizes(tensors, source)
    known = DiTConfig.of(checkpoint.spec, DiT.usual_profile) if checkpoint.spec else None
    config = DiTConfig(
        **sizes,
        heads=heads or (known.heads if known else _usual_heads(sizes["width"], source)),
        profile=profile or (known.profile if known else DiT.usual_profile),
    )
    rows, (_, channels, patch, _) = len(tensors[TABLE]), tensors["x_embedder.proj.weight"].shape
    null_index = checkpoint.null_index if null_index is None else null_index
    if null_index is not None and null_index != rows - 1:
        tensors[TABLE] = null_last(tensors[TABLE], null_index, source)
    side = math.isqrt(tensors["pos_embed"].shape[1]) * patch
    settings = config.spec_values(DiT.usual_profile)
    spec = spec_of(DiT.arch, settings, rows - 1, side, channels, **_said(checkpoint.spec, rows - 1) | facts)
    return adopt(DiT, spec, tensors, source)


def _said(spec: BackboneSpec | None, classes: int) -> Facts:
    """What a stored spec says; classes: of the table, which may have gained some."""
    if spec is None:
        return {}
    names = spec.class_names + tuple(f"class {i}" for i in range(spec.num_classes, classes))
    return {
        "class_names": names,
        "latent": spec.latent,
        "prediction": spec.prediction,
        "schedule": spec.schedule,
        "defaults": spec.defaults,
    }


def _sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The settings of `DiTConfig` that shapes tell: all but heads and profile."""

    def shape(name: str, dimensions: int) -> torch.Size:
        if name not in tensors:
            raise BackboneFileInvalid(source, f"it has no tensor {name!r}, so it is no DiT in this layout.")
        if tensors[name].dim() != dimensions or 0 in tensors[name].shape:
            raise BackboneFileInvalid(source, f"tensor {name!r} has the shape {list(tensors[name].shape)}.")
        return tensors[name].shape

    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    tokens = shape("pos_embed", 3)[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise BackboneFileInvalid(source, f"its 'pos_embed' has {tokens} positions, which are no square.")
    shape(TABLE, 2)
    (values,) = shape("final_layer.linear.bias", 1)
    if values not in (patch * patch * channels, 2 * patch * patch * channels):
        raise BackboneFileInvalid(
            source,
            f"its final layer gives {values} values a patch; {channels} channels of {patch} × {patch} need "
            f"{patch * patch * channels}, or twice as many where it predicts a variance too.",
        )
    (hidden,) = shape("blocks.0.mlp.fc1.bias", 1)
    blocks = (re.match(r"blocks\.(\d{1,9})\.", name) for name in tensors)
    return {
        "width": width,
        "depth": 1 + max(int(block[1]) for block in blocks if block),
        "patch": patch,
        "mlp_ratio": _ratio(hidden, width),
        "learn_sigma": values == 2 * patch * patch * channels,
    }


def _ratio(hidden: int, width: int) -> float:
    """The mlp_ratio of which a DiT's int(width · ratio) is hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _usual_heads(width: int, source: str) -> int:
    if width not in HEADS:
        official = ", ".join(str(known) for known in HEADS)
        raise BackboneFileInvalid(
            source,
            f"shapes do not tell the number of attention heads, and {width} is not the width of an official "
            f"size ({official}). Give heads.",
        )
    return HEADS[width]


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        said = tensor_files.read_header(path).metadata
    except (OSError, tensor_files.NotSafetensors) as error:
        raise BackboneFileInvalid(str(path), f"{words_of(error)}.") from error
    return _checkpoint(load_file(path), said, str(path))


def _read_pickle(path: Path) -> Checkpoint:
    """A `.pt` is a pickle, which can hold code; nothing of one is run."""
    source = str(path)
    if not path.is_file():
        raise BackboneFileInvalid(source, "there is no such file.")
    try:
        # DiT's own training script stores its command line, a Namespace, beside the weights.
        with torch.serialization.safe_globals([Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {code[1]}, which is code" if code else "it holds other things than tensors"
        raise BackboneFileInvalid(
            source,
            f"{what}, and code from a file is never run here. Where you trust the file, load it with "
            "torch.load(…, weights_only=False) yourself and save its state dict alone.",
        ) from error
    except Exception as error:  # bytes that are no pickle fail anywhere in reading one
        raise BackboneFileInvalid(source, "it is no checkpoint of PyTorch, or is cut off.") from error
    if not isinstance(found, dict):
        raise BackboneFileInvalid(source, f"it holds a {type(found).__name__} in place of a state dict.")
    return _checkpoint(_state_dict(found, source), found, source)


def _state_dict(found: dict[str, Any], source: str) -> dict[str, Tensor]:
    inner = next((found[name] for name in WEIGHTS if isinstance(found.get(name), dict)), found)
    for name, tensor in inner.items():
        if type(name) is not str or not isinstance(tensor, Tensor):
            raise BackboneFileInvalid(
                source,
                f"it is neither a state dict nor holds one as 'ema' or 'model': {name!r} is no tensor.",
            )
    return dict(inner)


def _checkpoint(tensors: dict[str, Tensor], said: Mapping[str, Any], source: str) -> Checkpoint:
    """said: what stands beside the tensors, checked here."""
    try:
        spec = BackboneSpec.from_json(said[SPEC_KEY]) if SPEC_KEY in said else None
        null_index = int(said["null_index"]) if "null_index" in said else None
        if "layout" in said and TABLE in tensors:
            rows = len(tensors[TABLE]) - 1
            if said["layout"] != ("canonical" if null_index == rows else "append"):
                raise ValueError(
                    f"its layout is {said['layout']!r}, but its null row is {null_index} of {rows}"
                )
    except (TypeError, ValueError, KeyError) as error:
        raise BackboneFileInvalid(source, f"what it says of itself cannot be read: {error}.") from error
    return Checkpoint(tensors, spec, null_index)


def write_official(backbone: DiT, path: Path, extra_rows: Tensor | None = None) -> None:
    """Writes a checkpoint that the official code reads, a `.pt` or `.safetensors` by the path's ending.

    extra_rows: (M, D) class rows learnt later. They come after the null row, which stays at N (the append
    layout). A VAE is not part of a checkpoint. The file is there whole or not at all.

    Raises ConfigInvalid where the official code would predict something else.
    """
    if backbone.profile != PROFILES["official"]:
        raise ConfigInvalid(
            "profile",
            f"this backbone is of the profile {backbone.config.profile!r}, and the official code computes "
            "its own, so the weights would predict other things there. To write them nevertheless, give the "
            "backbone the other profile first (with_profile).",
        )
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in backbone.state_dict().items()
        if not name.startswith("vae.")
    }
    tensors[TABLE] = with_rows(tensors[TABLE], extra_rows)
    spec = backbone.spec
    if spec.latent is not None:
        spec = replace(spec, latent=replace(spec.latent, vae=None))
    said = {SPEC_KEY: spec.to_json(), "layout": layout(extra_rows), "null_index": str(spec.null_index)}
    if path.suffix == ".safetensors":
        content = save(tensors, metadata=said)
    elif path.suffix in (".pt", ".pth"):
        buffer = BytesIO()
        torch.save({"ema": tensors, **said}, buffer)
        content = buffer.getvalue()
    else:
        raise ConfigInvalid("path", f"{path.name!r} ends neither in .pt nor in .safetensors.")
    tensor_files.write_whole(path, content)

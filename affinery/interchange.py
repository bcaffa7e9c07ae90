"""LoRA to and from the file formats of PEFT and diffusers.

    write_peft(adapter, backbone, folder)        adapter_config.json, adapter_model.safetensors
    write_diffusers(adapter, backbone, folder)   pytorch_lora_weights.safetensors
    read_lora(path, backbone, fingerprint, task=…, block=…, class_names=…)

Modules are called what PEFT and diffusers call them in the network that the backbone was made of; PEFT takes
the native DiT too. A tensor goes over as it is, to the bit. LoRA files have no place for class rows:
those are written beside, in `class_rows.safetensors`, and read where that is; else each is the null row.

Layers of a file that differ in rank become one rank, the largest: A and B get zeros at their end, and each
layer's factor goes into its B, which then is rounded to float32 unless the factor is a power of two. All else
either has its exact counterpart here or is refused: nothing is loaded in part.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from affinery import tensor_files
from affinery.adapters.files import Adapter, AdapterMeta
from affinery.adapters.layers import Convolution, Linear
from affinery.adapters.lora import KIND, LoraConfig
from affinery.backbones.contract import LAYER_ROLES, Backbone, Site
from affinery.errors import AdapterFileInvalid, ConfigInvalid, near, words_of
from affinery.lora_files import (
    DIFFUSERS_CONFIG,
    DIFFUSERS_TENSORS,
    PEFT_CONFIG,
    PEFT_PREFIX,
    PEFT_TENSORS,
    Branch,
    read_branches,
)

CLASS_ROWS = "class_rows.safetensors"
PREFIXES = {"unet": "unet", "unet_condition": "unet", "dit_diffusers": "transformer"}
TIED = "emb.timestep_embedder."  # one module here, a copy in every block of diffusers' DiT


def write_peft(adapter: Adapter, backbone: Backbone, folder: Path) -> None:
    """Writes a LoRA as `PeftModel.from_pretrained` and `load_adapter` read it.

    backbone: the one that it was trained on; on the meta device will do. Raises ConfigInvalid.
    """
    layers = _outside(adapter, backbone)
    tensors = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in _tensors(layers).items()}
    config = _peft_config(adapter, layers, backbone)
    _write(folder, adapter, PEFT_TENSORS, tensors, {})
    tensor_files.write_whole(folder / PEFT_CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())


def write_diffusers(adapter: Adapter, backbone: Backbone, folder: Path) -> None:
    """Writes a LoRA as `load_lora_weights` of diffusers' pipelines reads it, its alpha in the metadata.

    Readers of before that metadata (diffusers 0.34) take alpha for the rank. Raises ConfigInvalid.
    """
    prefix = PREFIXES.get(backbone.spec.arch)
    if prefix is None:
        raise ConfigInvalid(
            "format",
            f"diffusers has no network with the layers of {backbone.spec.arch!r}; write it in PEFT's format.",
        )
    layers = _outside(adapter, backbone)
    tensors = {f"{prefix}.{name}": tensor for name, tensor in _tensors(layers).items()}
    config = {f"{prefix}.{name}": v for name, v in _peft_config(adapter, layers, backbone).items()}
    metadata = {DIFFUSERS_CONFIG: json.dumps(config, indent=2, sort_keys=True)}
    _write(folder, adapter, DIFFUSERS_TENSORS, tensors, metadata)


def read_lora(
    path: Path,
    backbone: Backbone,
    fingerprint: str,
    *,
    task: str,
    block: tuple[int, int],
    class_names: Sequence[str],
) -> Adapter:
    """A LoRA file of PEFT's or diffusers', as an adapter on a backbone.

    path: a folder, or a safetensors file. task, block, class_names: what such a file does not say.
    Raises AdapterFileInvalid where it does not fit the backbone in every tensor, or is more than a LoRA.
    """
    sites = _layers(backbone)
    ours = _names(backbone, sites)
    flat = {name.replace(".", "_"): name for name in ours}
    branches = read_branches(path, PREFIXES.get(backbone.spec.arch), flat)
    if unknown := sorted(branches.keys() - ours.keys()):
        raise AdapterFileInvalid(
            str(path),
            f"{len(unknown)} of its {len(branches)} layers are none of this {backbone.spec.arch}, as "
            f"{unknown[0]!r}.{near(unknown[0], ours)}",
        )
    found = _tied_together(branches, ours, str(path))
    config = _config(found, sites)
    tensors: dict[str, Tensor] = {}
    for name, branch in found.items():
        parts = _fitted(sites[name], config, branch)
        for part, expected in KIND.parts(sites[name], config).items():
            if parts[part].shape != expected.shape:
                raise AdapterFileInvalid(
                    str(path),
                    f"layer {name!r}: {part} has the shape {list(parts[part].shape)}, "
                    f"not {list(expected.shape)}.",
                )
            tensors[f"layers.{name}.{part}"] = parts[part]
    tensors["class_rows"] = _class_rows(path, backbone, len(class_names))
    null = backbone.spec.null_index
    meta = AdapterMeta(task, KIND.name, config.to_dict(), fingerprint, null, block, tuple(class_names))
    return Adapter(meta, tensors)


def _layers(backbone: Backbone) -> dict[str, Site]:
    """The layers that a LoRA may change, by our names."""
    return {
        name: site
        for name, site in backbone.sites().items()
        if site.role in LAYER_ROLES and isinstance(site.module, Linear)
    }


def _names(backbone: Backbone, sites: Mapping[str, Site]) -> dict[str, str]:
    """Our names of layers, by the names that they have in the network outside."""
    if backbone.spec.arch != "dit_diffusers":
        return {name: name for name in sites}
    names = {name: name for name in sites if not name.startswith(TIED)}
    for i in range(len(backbone.get_submodule("transformer_blocks"))):  # type: ignore[arg-type]
        names |= {f"transformer_blocks.{i}.norm1.{n}": n for n in sites if n.startswith(TIED)}
    return names


def _outside(adapter: Adapter, backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """A LoRA's tensors by outside names, B as the weight of a layer there. Raises ConfigInvalid."""
    if adapter.meta.kind != KIND.name:
        raise ConfigInvalid(
            "format",
            f"{adapter.meta.task!r} is of the kind {adapter.meta.kind}; these files hold LoRA only.",
        )
    sites, given = _layers(backbone), adapter.layers()
    if unknown := sorted(given.keys() - sites.keys()):
        raise ConfigInvalid(
            "backbone", f"it has no layer {unknown[0]!r}; {adapter.meta.task!r} is of another."
        )
    for name in given:
        _refuse_uneven(name, sites[name])
    return {
        outside: {
            "A": given[name]["A"],
            "B": given[name]["B"].reshape(*given[name]["B"].shape, *_ones(sites[name])),
        }
        for outside, name in _names(backbone, sites).items()
        if name in given
    }


def _ones(site: Site) -> tuple[int, ...]:
    """The kernel of a convolution's B, which is 1 × 1."""
    return (1,) * len(site.module.kernel_size) if isinstance(site.module, Convolution) else ()


def _refuse_uneven(name: str, site: Site) -> None:
    """PEFT's A of a convolution has its stride and padding, but neither its dilation nor its padding mode."""
    layer = site.module
    if not isinstance(layer, Convolution) or math.prod(layer.kernel_size) == 1:
        return
    if layer.padding_mode != "zeros" or any(step > 1 for step in layer.dilation):
        raise ConfigInvalid(
            name, "PEFT computes the LoRA of such a convolution without its dilation and padding mode."
        )


def _tensors(layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{name}.lora_{part}.weight": tensor.detach().cpu().clone()  # files hold no tensor twice
        for name, parts in layers.items()
        for part, tensor in parts.items()
    }


def _peft_config(adapter: Adapter, layers: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """What `peft.LoraConfig` is told."""
    config = KIND.config(adapter.meta.config)
    alpha = config.rank if config.alpha is None else config.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": _target_modules(sorted(layers), backbone),
    }


def _target_modules(names: Sequence[str], backbone: Backbone) -> list[str] | str:
    """The layers by name; as a pattern where a name is also the ending of another module's."""
    endings = tuple(f".{name}" for name in names)
    if any(name.endswith(endings) for name, _ in backbone.named_modules()):
        return "|".join(map(re.escape, names))
    return list(names)


def _write(
    folder: Path, adapter: Adapter, file: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    rows = {"class_rows": adapter.tensors["class_rows"].detach().cpu().contiguous()}
    about = {"format": "pt", "task": adapter.meta.task, "class_names": json.dumps(adapter.meta.class_names)}
    tensor_files.write_whole(folder / CLASS_ROWS, save(rows, metadata=about))
    content = save(
        {name: t.contiguous() for name, t in tensors.items()}, metadata={"format": "pt"} | dict(metadata)
    )
    tensor_files.write_whole(folder / file, content)


def _tied_together(branches: Mapping[str, Branch], ours: Mapping[str, str], source: str) -> dict[str, Branch]:
    """By our names. A module that is one here and several outside must be given the same in all of them."""
    found: dict[str, Branch] = {}
    for outside, name in ours.items():
        branch = branches.get(outside)
        known = found.get(name)
        tied = name.startswith(TIED)
        if branch is not None and known is None and not (tied and "blocks.0." not in outside):
            found[name] = branch
        elif branch is not None or known is not None:
            same = (
                branch is not None
                and known is not None
                and branch.scale == known.scale
                and torch.equal(branch.A, known.A)
                and torch.equal(branch.B, known.B)
            )
            if not same:
                raise AdapterFileInvalid(
                    source,
                    f"layer {outside!r} is changed otherwise than in other blocks, but it is one here.",
                )
    return found


def _config(branches: Mapping[str, Branch], sites: Mapping[str, Site]) -> LoraConfig:
    """One rank for all. alpha: where one factor holds for all too; else the factors go into the B's."""
    for name in branches:
        _refuse_uneven(name, sites[name])
    ranks = {branch.rank for branch in branches.values()}
    scales = {branch.scale for branch in branches.values()}
    rank = max(ranks)
    if len(ranks) > 1:  # a convolution's groups have equal shares of the rank
        groups = [
            s.module.groups for n, s in sites.items() if n in branches and isinstance(s.module, Convolution)
        ]
        rank = math.ceil(rank / math.lcm(*groups)) * math.lcm(*groups)
    scale = min(scales)
    one_factor = len(ranks) == len(scales) == 1 and scale != 1
    return LoraConfig(rank, scale * rank if one_factor else None, targets=_targets(branches, sites))


def _targets(names: Mapping[str, Branch], sites: Mapping[str, Site]) -> tuple[str, ...]:
    """The layers as a config states them most plainly: as the usual ones, by roles, or by name."""
    ordered = [name for name in sites if name in names]
    roles = tuple(dict.fromkeys(sites[name].role for name in ordered))
    for targets in ((), roles):
        config = LoraConfig(targets=targets)
        if [name for name, site in sites.items() if KIND.targets(name, site, config)] == ordered:
            return targets
    return tuple(ordered)


def _fitted(site: Site, config: LoraConfig, branch: Branch) -> dict[str, Tensor]:
    """The two matrices in the config's rank: zeros at the end, within each of a convolution's groups."""
    A, B = branch.A, branch.B
    if isinstance(site.module, Convolution) and B.dim() > 2 and math.prod(B.shape[2:]) == 1:
        B = B.flatten(1)
    if config.alpha is None:
        B = branch.scale * B
    groups = site.module.groups if isinstance(site.module, Convolution) else 1
    missing = (config.rank - branch.rank) // groups
    if missing and branch.rank % groups == 0:
        A = F.pad(A.unflatten(0, (groups, -1)), [0, 0] * (A.dim() - 1) + [0, missing]).flatten(0, 1)
        B = F.pad(B, (0, missing))
    return {"A": A.contiguous(), "B": B.contiguous()}


def _class_rows(path: Path, backbone: Backbone, count: int) -> Tensor:
    """(M, D): those written beside a LoRA file, or the null row M times."""
    table = backbone.class_table.detach()
    file = (path if path.is_dir() else path.parent) / CLASS_ROWS
    if not file.exists():
        return table[backbone.spec.null_index].repeat(count, 1).float().cpu()
    try:
        tensor_files.read_header(file)
    except (OSError, ValueError) as error:
        raise AdapterFileInvalid(str(file), f"{words_of(error)}.") from error
    rows = load_file(file).get("class_rows")
    if rows is None or list(rows.shape) != [count, table.shape[1]] or not bool(rows.isfinite().all()):
        raise AdapterFileInvalid(
            str(file), f"it does not hold class rows of {count} × {table.shape[1]} numbers."
        )
    return rows

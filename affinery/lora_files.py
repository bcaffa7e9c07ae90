"""LoRA files of others, read as what they mean: for each module, two matrices and a factor.

PEFT's folder (`adapter_config.json`, `adapter_model.safetensors`), diffusers' file
(`pytorch_lora_weights.safetensors`), its older spellings, and the flat names of kohya's trainers. Only
safetensors and JSON are read. What is more than a LoRA (DoRA, biases, whole modules, text encoders) is
refused, since without it the rest means something else.

Shape legend: r the rank, g a convolution's groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from affinery import tensor_files
from affinery.errors import AdapterFileInvalid, words_of

PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS_TENSORS, DIFFUSERS_CONFIG = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"
PEFT_PREFIX, KOHYA_PREFIX = "base_model.model.", "lora_unet_"
CONFIG_LIMIT_BYTES = 10_000_000
TEXT = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "lora_te_", "lora_te1_", "lora_te2_", "te.")
FLOATS = {"F32", "F16", "BF16"}  # 32 bits hold every value of theirs

# What a tensor's name shows that is no LoRA, or more than one.
MORE = {
    "lora_magnitude_vector": "it is a DoRA, which also learns each weight's magnitude",
    "dora_scale": "it is a DoRA, which also learns each weight's magnitude",
    "lora_embedding_": "it adapts an embedding",
    "lora_mid": "it has a third matrix between the two (Tucker)",
    "hada_": "it is a LoHa",
    "lokr_": "it is a LoKr",
    "oft_": "it is an OFT",
    "ia3_": "it is an IA³",
    "modules_to_save": "it holds whole modules (modules_to_save)",
    ".diff": "it holds whole weights",
}
# Settings of PEFT under which two matrices and a factor are not all there is.
DEMANDING = {
    "use_dora": "DoRA also learns each weight's magnitude",
    "lora_bias": "its branches have biases",
    "modules_to_save": "it holds whole modules",
    "trainable_token_indices": "it changes rows of an embedding",
    "target_parameters": "it changes parameters that are no layers' weights",
    "layer_replication": "it repeats layers of the backbone",
    "alora_invocation_tokens": "its branches wait for certain tokens",
    "use_qalora": "its branches average their input",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it chooses among adapters by token",
    "kasa_config": "it changes the backbone's own weights",
    "monteclora_config": "its matrices are drawn at random",
    "velora_config": "its input is compressed",
}
MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to start that change the backbone's weights
PARTS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora.down": "A",
    "lora.up": "B",
    "lora_down": "A",
    "lora_up": "B",
    "lora_linear_layer.down": "A",
    "lora_linear_layer.up": "B",
}
TENSOR = re.compile(rf"(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, PARTS))})\.weight")
PATTERN = re.compile(r"\^?[\w.]+")
OLDER = ((".processor.", "."), ("_lora.", ".lora."), (".to_out.lora.", ".to_out.0.lora."))


@dataclass(frozen=True)
class Branch:
    """What is added to a module's output: scale · B A x. A: (r, in, *kernel); B: (out, r / g, *ones)."""

    A: Tensor
    B: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.A)


@dataclass(frozen=True)
class Settings:
    """What a config of PEFT's says of scales. ranks, alphas: those of modules of a name, or of an ending."""

    rank: int
    alpha: float
    rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: Any, source: str) -> Settings:
        """Raises AdapterFileInvalid."""
        if not isinstance(raw, dict):
            raise AdapterFileInvalid(source, "its config is not a JSON object.")
        if raw.get("peft_type", "LORA") != "LORA":
            raise AdapterFileInvalid(source, f"it is of the type {raw['peft_type']!r}, not a LoRA.")
        for name, why in DEMANDING.items():
            if raw.get(name):
                raise AdapterFileInvalid(source, f"its config says {name}: {why}. Only plain LoRA is read.")
        if raw.get("bias", "none") != "none":
            raise AdapterFileInvalid(
                source, f"it trains biases (bias = {raw['bias']!r}). Only plain LoRA is read."
            )
        start = raw.get("init_lora_weights", True)
        if isinstance(start, str) and start.lower().startswith(MUTATING):
            raise AdapterFileInvalid(
                source,
                f"it was started with {start!r}, which changes the backbone's own weights. Save it with "
                "path_initial_model_for_weight_conversion, as PEFT describes, and read that.",
            )
        rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
        ranks, alphas = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
        for patterns in (ranks, alphas):
            if not isinstance(patterns, dict) or not all(map(PATTERN.fullmatch, patterns)):
                raise AdapterFileInvalid(source, "its rank_pattern or alpha_pattern is more than names.")
        numbers = [rank, alpha, *ranks.values(), *alphas.values()]
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers) or rank < 1:
            raise AdapterFileInvalid(source, "its rank or its alpha is not a number.")
        return cls(rank, alpha, bool(raw.get("use_rslora")), ranks, alphas)

    def scale(self, module: str, rank: int, source: str) -> float:
        """rank: that of the module's tensors, which must be what the config says."""
        said = _of_module(self.ranks, module, self.rank)
        if said != rank:
            raise AdapterFileInvalid(
                source, f"layer {module!r} has tensors of rank {rank}, but its config says {said:g}."
            )
        return _of_module(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def _of_module(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^")
        if module == name or (name == pattern and module.endswith(f".{name}")):
            return value
    return otherwise


def read_branches(path: Path, prefix: str | None, flat: Mapping[str, str]) -> dict[str, Branch]:
    """By module, what a LoRA file says, every tensor of it used. Raises AdapterFileInvalid.

    path: a folder of PEFT's or diffusers', or a safetensors file. prefix: what diffusers calls the network
    among the parts of a pipeline ("unet"), or None. flat: modules' names by their names with _ for every dot.
    """
    file, config = _find(path)
    tensors, settings = _read(file, config, prefix)
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        module, part = _parsed(name, prefix, flat, str(path))
        if part == "alpha":
            alphas[module] = _number(tensor, name, str(path))
            continue
        if not bool(tensor.isfinite().all()):
            raise AdapterFileInvalid(str(path), f"tensor {name!r} holds values that are not finite.")
        if part in halves.setdefault(module, {}):
            raise AdapterFileInvalid(str(path), f"it has layer {module!r} twice, under two spellings.")
        halves[module][part] = tensor.float()
    if not halves:
        raise AdapterFileInvalid(str(path), "it holds no LoRA tensors.")
    if alphas and settings is not None:
        raise AdapterFileInvalid(str(path), "it has a config and alphas among its tensors; which hold?")
    if odd := alphas.keys() - halves.keys():
        raise AdapterFileInvalid(str(path), f"layer {min(odd)!r} has an alpha, but no tensors.")
    return {
        module: _branch(module, parts, settings, alphas.get(module), str(path))
        for module, parts in halves.items()
    }


def _find(path: Path) -> tuple[Path, Path | None]:
    """The file with the tensors, and PEFT's config where it is PEFT's."""
    if path.name == PEFT_TENSORS:
        path = path.parent
    if not path.is_dir():
        return path, None
    if (path / PEFT_CONFIG).exists():
        return path / PEFT_TENSORS, path / PEFT_CONFIG
    return path / DIFFUSERS_TENSORS, None


def _read(file: Path, config: Path | None, prefix: str | None) -> tuple[dict[str, Tensor], Settings | None]:
    """The file's tensors, and what its config says, where it has one."""
    if not file.exists():
        raise AdapterFileInvalid(
            str(file), "there is no such file. LoRA is read from safetensors only, no pickles."
        )
    try:
        header = tensor_files.read_header(file)
        raw: Any = None
        if config is not None:
            if config.stat().st_size > CONFIG_LIMIT_BYTES:
                raise ValueError(f"{config.name} is larger than any config")
            raw = tensor_files.read_json(config.read_bytes())
        elif DIFFUSERS_CONFIG in header.metadata:
            raw = _unprefixed(tensor_files.read_json(header.metadata[DIFFUSERS_CONFIG]), prefix)
    except (OSError, ValueError) as error:
        raise AdapterFileInvalid(str(file), f"{words_of(error)}.") from error
    for name, entry in header.tensors.items():
        for mark, why in MORE.items():
            if mark in name:
                raise AdapterFileInvalid(str(file), f"{why} (tensor {name!r}). Only plain LoRA is read.")
        if entry.dtype not in FLOATS and not name.endswith(".alpha"):
            raise AdapterFileInvalid(
                str(file), f"tensor {name!r} holds {entry.dtype}, not {', '.join(sorted(FLOATS))}."
            )
    text = [name for name in header.tensors if name.startswith(TEXT)]
    if text:
        raise AdapterFileInvalid(
            str(file),
            f"{len(text)} of its {len(header.tensors)} tensors change a text encoder, which stays as it is "
            "here, so the rest would not draw what it was trained to. Train it without the text encoder.",
        )
    return load(file.read_bytes()), None if raw is None else Settings.of(raw, str(file))


def _unprefixed(raw: Any, prefix: str | None) -> Any:
    """A network's own settings, where they stand among those of a pipeline's parts."""
    if not isinstance(raw, dict) or "r" in raw:
        return raw
    own = {key.removeprefix(f"{prefix}."): v for key, v in raw.items() if key.startswith(f"{prefix}.")}
    if raw and not own:
        raise ValueError(f"its config is of another network ({min(raw)!r})")
    return own


def _parsed(name: str, prefix: str | None, flat: Mapping[str, str], source: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and what it is there: A, B or alpha."""
    key = name.removeprefix(PEFT_PREFIX)
    if prefix is not None:
        key = key.removeprefix(f"{prefix}.")
    for old, new in OLDER:
        key = key.replace(old, new)
    if key.endswith(".alpha"):
        module, part = key.removesuffix(".alpha"), "alpha"
    elif match := TENSOR.fullmatch(key):
        module, part = match["module"], PARTS[match["part"]]
    else:
        raise AdapterFileInvalid(source, f"tensor {name!r} is none of a LoRA's. Only plain LoRA is read.")
    if module.startswith(KOHYA_PREFIX):
        module = flat.get(module.removeprefix(KOHYA_PREFIX), module)
    return module, part


def _number(tensor: Tensor, name: str, source: str) -> float:
    if tensor.numel() != 1 or not math.isfinite(tensor.item()):
        raise AdapterFileInvalid(source, f"tensor {name!r} is not one number.")
    return float(tensor.item())


def _branch(
    module: str, parts: Mapping[str, Tensor], settings: Settings | None, alpha: float | None, source: str
) -> Branch:
    """Without a config and an alpha the factor is 1, as diffusers takes it."""
    if parts.keys() != {"A", "B"}:
        raise AdapterFileInvalid(source, f"layer {module!r} has one of its two matrices only.")
    if min(parts["A"].dim(), parts["B"].dim()) < 2 or not len(parts["A"]):
        raise AdapterFileInvalid(source, f"layer {module!r} has tensors that are no matrices.")
    rank = len(parts["A"])
    if settings is not None:
        return Branch(parts["A"], parts["B"], settings.scale(module, rank, source))
    return Branch(parts["A"], parts["B"], 1.0 if alpha is None else alpha / rank)

"""Adapter files: safetensors whose metadata says what they are, so that none is loaded in a wrong place.

What they say, and how it is checked, is in `meta.py`; here they become tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from affinery.adapters.meta import LAYER_TENSOR, META_KEY, STEM, AdapterMeta, read_meta
from affinery.errors import AdapterFileInvalid

__all__ = ["META_KEY", "STEM", "Adapter", "AdapterMeta", "adapter_bytes", "read_adapter"]


@dataclass(frozen=True)
class Adapter:
    """An adapter set in memory: its record and its tensors."""

    meta: AdapterMeta
    tensors: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def named(self, task: str) -> Adapter:
        """The same under another name: a file carries the one its task had when it was learnt."""
        return replace(self, meta=replace(self.meta, task=task))

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """By layer, its parts."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            if LAYER_TENSOR.fullmatch(name):
                layer, part = name.removeprefix("layers.").rsplit(".", 1)
                found.setdefault(layer, {})[part] = tensor
        return found

    def stem(self) -> dict[str, Tensor]:
        """The condition stem's tensors, by part; none where the task is told no condition."""
        return {n.removeprefix(STEM): tensor for n, tensor in self.tensors.items() if n.startswith(STEM)}


def adapter_bytes(adapter: Adapter) -> bytes:
    """The file's bytes: the same tensors and record always give the same bytes."""
    tensors = {name: adapter.tensors[name].detach().cpu().contiguous() for name in sorted(adapter.tensors)}
    return save(tensors, metadata={META_KEY: adapter.meta.to_json()})


def read_adapter(path: Path, digest: str | None = None) -> Adapter:
    """An adapter file, checked. digest: the SHA-256 that it must have. Raises AdapterFileInvalid."""
    meta, _ = read_meta(path, digest)
    tensors = load(path.read_bytes())
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterFileInvalid(str(path), f"tensor {name!r} holds values that are not finite.")
    return Adapter(meta, tensors)

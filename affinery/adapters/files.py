"""Adapter files: safetensors whose metadata says what they are, so that none is loaded in a wrong place.

Tensor names carry no task: `layers.<layer>.<part>` and `class_rows` (M, D). The metadata holds the kind and
its config, the backbone's fingerprint, the layout of the class table and the rows that the task owns in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from affinery import tensor_files
from affinery.errors import AdapterFileInvalid

META_KEY = "affinery.adapter"
LAYOUT = "append"


@dataclass(frozen=True)
class AdapterMeta:
    """What an adapter says of itself.

    block: the half-open range [lo, hi) of rows that its task owns in the extended class table.
    layout "append": the null row keeps its index and tasks' rows come after it (DiffScaler, eq. 1).
    """

    task: str
    kind: str
    config: dict[str, Any]
    backbone: str
    null_index: int
    block: tuple[int, int]
    class_names: tuple[str, ...]
    layout: str = LAYOUT

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> AdapterMeta:
        """Raises TypeError, ValueError or KeyError on anything that is no such record."""
        raw = json.loads(text)
        low, high = (int(n) for n in raw["block"])
        raw["block"] = (low, high)
        raw["class_names"] = tuple(str(name) for name in raw["class_names"])
        meta = cls(**raw)
        if meta.layout != LAYOUT:
            raise ValueError(f"the class table's layout {meta.layout!r} is not {LAYOUT!r}")
        if not meta.null_index < low < high or high - low != len(meta.class_names):
            raise ValueError(f"rows [{low}, {high}) are not those of {len(meta.class_names)} classes")
        return meta


@dataclass(frozen=True)
class Adapter:
    """An adapter set in memory: its record and its tensors."""

    meta: AdapterMeta
    tensors: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """By layer, its parts."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            if name.startswith("layers."):
                layer, part = name.removeprefix("layers.").rsplit(".", 1)
                found.setdefault(layer, {})[part] = tensor
        return found


def adapter_bytes(adapter: Adapter) -> bytes:
    """The file's bytes: the same tensors and record always give the same bytes."""
    tensors = {name: adapter.tensors[name].detach().cpu().contiguous() for name in sorted(adapter.tensors)}
    return save(tensors, metadata={META_KEY: adapter.meta.to_json()})


def read_adapter(path: Path) -> Adapter:
    """An adapter file, checked. Raises AdapterFileInvalid."""
    try:
        header = tensor_files.read_header(path)
        meta = AdapterMeta.from_json(header.metadata[META_KEY])
    except KeyError as error:
        raise AdapterFileInvalid(str(path), f"its metadata has no {META_KEY!r} record.") from error
    except (OSError, TypeError, ValueError) as error:
        raise AdapterFileInvalid(str(path), f"{error}.") from error
    tensors = load(path.read_bytes())
    rows = tensors.get("class_rows")
    if rows is None or len(rows) != len(meta.class_names):
        raise AdapterFileInvalid(str(path), f"it lacks class rows for its {len(meta.class_names)} classes.")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterFileInvalid(str(path), f"tensor {name!r} holds values that are not finite.")
    return Adapter(meta, tensors)

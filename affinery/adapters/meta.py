"""What an adapter file says of itself, read and checked without torch: a header is enough.

Tensor names carry no task: `layers.<layer>.<part>`, `class_rows` (M, D), and `stem.<part>` where the task is
told a spatial condition. The metadata holds the kind and its config, the backbone's fingerprint, the layout
of the class table and the rows that the task owns in it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affinery import tensor_files
from affinery.errors import AdapterFileInvalid, words_of
from affinery.limits import CONDITION_CHANNELS_LIMIT, SIDE_LIMIT
from affinery.names import can_be_shown
from affinery.tensor_files import Header

META_KEY = "affinery.adapter"
LAYOUT = "append"
RECORD_TYPES = {
    "task": str,
    "kind": str,
    "config": dict,
    "backbone": str,
    "null_index": int,
    "block": list,
    "class_names": list,
}
LAYER_TENSOR = re.compile(r"layers\.[^\0]+\.[^.\0]+")
STEM = "stem."
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class AdapterMeta:
    """What an adapter says of itself.

    task: the name under which it was learnt; the registry or the manifest says what the task is called now.
    block: the half-open range [lo, hi) of rows that its task owns in the extended class table.
    layout "append": the null row keeps its index and tasks' rows come after it (DiffScaler, eq. 1).
    condition: the spatial condition that the task is told: its `name`, its `channels`, how it is made.
    image_size: in pixels, where it is not the backbone's own.
    """

    task: str
    kind: str
    config: dict[str, Any]
    backbone: str
    null_index: int
    block: tuple[int, int]
    class_names: tuple[str, ...]
    layout: str = LAYOUT
    condition: dict[str, Any] | None = None
    image_size: int | None = None

    def to_json(self) -> str:
        """What does not apply to a task (a condition, a size of its own) is left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def may_hold(self, tensor: str) -> bool:
        """Whether a tensor of this name may be in an adapter like this one."""
        if tensor == "class_rows" or LAYER_TENSOR.fullmatch(tensor):
            return True
        return self.condition is not None and tensor.startswith(STEM)

    @classmethod
    def from_json(cls, text: str) -> AdapterMeta:
        """Raises TypeError, ValueError or KeyError on anything that is no such record."""
        raw = tensor_files.read_json(text)
        low, high = raw["block"]
        for name, kind in RECORD_TYPES.items():
            if type(raw[name]) is not kind:
                raise ValueError(f"its {name} is not of the right type")
        if not all(type(n) is int for n in (low, high)) or not all(
            isinstance(name, str) and can_be_shown(name) for name in raw["class_names"]
        ):
            raise ValueError("its class rows are not whole numbers, or its class names cannot be shown")
        raw["block"], raw["class_names"] = (low, high), tuple(raw["class_names"])
        meta = cls(**raw)
        if meta.layout != LAYOUT:
            raise ValueError(f"the class table's layout {meta.layout!r} is not {LAYOUT!r}")
        if not 0 <= meta.null_index < low < high or high - low != len(meta.class_names):
            raise ValueError(f"rows [{low}, {high}) are not those of {len(meta.class_names)} classes")
        _check_picture(meta)
        return meta


def _check_picture(meta: AdapterMeta) -> None:
    """Raises ValueError where the condition or the size is none."""
    size, condition = meta.image_size, meta.condition
    if size is not None and not (type(size) is int and 1 <= size <= SIDE_LIMIT):
        raise ValueError(f"the image size {size!r} is not a whole number from 1 to {SIDE_LIMIT}")
    if condition is None:
        return
    channels = condition.get("channels")
    if not isinstance(condition.get("name"), str) or type(channels) is not int:
        raise ValueError("its condition has no name, or no number of channels")
    if not 1 <= channels <= CONDITION_CHANNELS_LIMIT:
        raise ValueError(f"a condition of {channels} channels is not one of 1 to {CONDITION_CHANNELS_LIMIT}")


def read_meta(path: Path, digest: str | None = None) -> tuple[AdapterMeta, Header]:
    """A file's record and header. digest: the SHA-256 that it must have. Raises AdapterFileInvalid."""
    try:
        header = tensor_files.read_header(path)
        if digest is not None and tensor_files.sha256_file(path) != digest:
            raise AdapterFileInvalid(str(path), f"its bytes are not those of the digest {digest[:12]}.")
    except (OSError, ValueError) as error:
        raise AdapterFileInvalid(str(path), f"{words_of(error)}.") from error
    if META_KEY not in header.metadata:
        raise AdapterFileInvalid(str(path), f"its metadata has no {META_KEY!r} record.")
    try:
        meta = AdapterMeta.from_json(header.metadata[META_KEY])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterFileInvalid(str(path), f"its record cannot be read: {error}.") from error
    for name, entry in header.tensors.items():
        if entry.dtype not in FLOATS:
            raise AdapterFileInvalid(str(path), f"tensor {name!r} holds {entry.dtype}, not real numbers.")
        if not meta.may_hold(name):
            raise AdapterFileInvalid(str(path), f"tensor {name!r} belongs to no layer.")
    rows = header.tensors.get("class_rows")
    if rows is None or rows.shape[:1] != (len(meta.class_names),):
        raise AdapterFileInvalid(str(path), f"it lacks class rows for its {len(meta.class_names)} classes.")
    return meta, header


def parameters(header: Header) -> int:
    """How many numbers the tensors of a file have."""
    return sum(math.prod(entry.shape) for entry in header.tensors.values())

"""How far the tensors of two adapters are apart: norms, read from their files one tensor at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery import tensor_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """Euclidean norms of a tensor on either side and of what is between; None where a side has it not.

    apart is None too where the shapes differ; all are where the numbers cannot be read, or are not finite.
    """

    name: str
    left_shape: tuple[int, ...] | None
    right_shape: tuple[int, ...] | None
    left: float | None
    right: float | None
    apart: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def tensor_differences(left: Path, right: Path) -> list[TensorDifference]:
    """Compare two safetensors files by their tensors' names; raises NotSafetensors."""
    ours, theirs = tensor_files.read_header(left).tensors, tensor_files.read_header(right).tensors
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        x, y = (None if a is None else _read(left, a)), (None if b is None else _read(right, b))
        shapes = (None if a is None else a.shape), (None if b is None else b.shape)
        between = x - y if x is not None and y is not None and shapes[0] == shapes[1] else None
        found.append(TensorDifference(name, *shapes, _norm(x), _norm(y), _norm(between)))
    return found


def _norm(values: NDArray[np.float64] | None) -> float | None:
    import numpy as np

    with np.errstate(over="ignore"):
        norm = None if values is None else float(np.linalg.norm(values))
    return norm if norm is not None and np.isfinite(norm) else None


def _read(path: Path, entry: tensor_files.TensorEntry) -> NDArray[np.float64] | None:
    """A tensor's numbers in double precision, flat; None for a type that has no numbers we know."""
    import numpy as np

    size = entry.stop - entry.start
    if entry.dtype == "BF16":  # the upper half of a float32
        half = np.fromfile(path, dtype="<u2", count=size // 2, offset=entry.start).astype("<u4")
        return (half << 16).view("<f4").astype(np.float64)
    if entry.dtype not in _TYPES:
        return None
    kind = np.dtype(_TYPES[entry.dtype])
    numbers = np.fromfile(path, dtype=kind, count=size // kind.itemsize, offset=entry.start)
    return numbers.astype(np.float64)

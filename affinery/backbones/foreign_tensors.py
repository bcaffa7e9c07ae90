"""Tensors that others wrote, checked for names, shapes and numbers before a backbone takes them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from affinery.backbones.contract import Backbone, BackboneSpec, on_meta
from affinery.errors import BackboneFileInvalid, ConfigInvalid

EXACT_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)

AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)


def adopt(
    backbone: type[AnyBackbone],
    spec: BackboneSpec,
    state: Mapping[str, Tensor],
    source: str,
    derived: Mapping[str, Callable[[], Tensor]] | None = None,
) -> AnyBackbone:
    """A frozen backbone of 32-bit floats that takes the tensors of a state dict over.

    source: where they came from, for the error. derived: how to make tensors that it may lack.
    Raises BackboneFileInvalid.
    """
    built = on_meta(spec, backbone)
    assert isinstance(built, backbone)
    lacking = {name: make for name, make in (derived or {}).items() if name not in state}
    expected = {name: tensor for name, tensor in built.state_dict().items() if name not in lacking}
    check_names(expected, state, source)
    tensors = {name: checked(name, tensor, source) for name, tensor in state.items()}
    tensors |= {name: make() for name, make in lacking.items()}
    built.load_state_dict(tensors, strict=True, assign=True)
    built.freeze()
    return built


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Raises BackboneFileInvalid where a tensor is missing, unknown or of another shape."""
    if missing := sorted(expected.keys() - found.keys()):
        raise BackboneFileInvalid(source, f"it has no tensor {_some(missing)}, which the architecture needs.")
    if unknown := sorted(found.keys() - expected.keys()):
        raise BackboneFileInvalid(source, f"it has a tensor {_some(unknown)}, which no DiT of its sizes has.")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise BackboneFileInvalid(
                source,
                f"tensor {name!r} has the shape {list(found[name].shape)}, but its other tensors ask for "
                f"{list(tensor.shape)}.",
            )


def _some(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"


def checked(name: str, tensor: Tensor, source: str) -> Tensor:
    """→ the tensor in 32-bit floats, which hold every value of 16-bit floats exactly."""
    if tensor.dtype not in EXACT_IN_FLOAT32:
        raise BackboneFileInvalid(
            source, f"tensor {name!r} holds {tensor.dtype}; convert it to 32-bit floats first."
        )
    if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise BackboneFileInvalid(source, f"tensor {name!r} does not hold a value for each of its places.")
    if not bool(tensor.isfinite().all()):
        raise BackboneFileInvalid(source, f"tensor {name!r} holds values that are not finite.")
    return tensor.detach().to(torch.float32).contiguous()


def with_rows(table: Tensor, extra: Tensor | None) -> Tensor:
    """A class table (N + 1, D) and M rows learnt later: (N + 1 + M, D), the null row staying at N."""
    if extra is None or not len(extra):
        return table
    if extra.shape[1:] != table.shape[1:] or extra.dtype != table.dtype:
        raise ConfigInvalid(
            "extra_rows",
            f"{list(extra.shape)} of {extra.dtype} do not continue a table of {list(table.shape)}, "
            f"{table.dtype}.",
        )
    return torch.cat([table, extra.detach().to(table.device)])


def layout(extra: Tensor | None) -> str:
    """How a table's rows stand, which its shape cannot tell: "append" where some come after the null row."""
    return "canonical" if extra is None or not len(extra) else "append"


def null_last(table: Tensor, null_index: int, source: str) -> Tensor:
    """The same rows in the canonical layout: the null row last, after the rows that came behind it."""
    if type(null_index) is not int or not 0 <= null_index < len(table):
        raise BackboneFileInvalid(source, f"its null row, {null_index!r}, is none of {len(table)} rows.")
    return torch.cat([table[:null_index], table[null_index + 1 :], table[null_index : null_index + 1]])

"""Running a step on the meta device, where tensors have shapes and no values, and counting what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


class Multiplications(TorchDispatchMode):
    """Counts multiply-accumulates on the meta device, by PyTorch's own formulas.

    It counts as `FlopCounterMode` does, in a fraction of the time: the blocks of a network repeat each other,
    and an operation on shapes that were met before is not worked out again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0.0
        self._formulas = flop_registry | ATTENTION_FLOPS
        self._met: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return (
                args[0].dtype == torch.bool
            )  # code that asks whether values are as usual hears that they are
        out = self._outcome(func, args, named)
        formula = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self.macs += formula(*args, **named, out_val=out) / 2
        return out

    def _outcome(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not _makes_new_tensors(func):
            return func(*args, **named)
        key = (func, _form(args), _form(tuple(named.items())))
        if key not in self._met:
            out = func(*args, **named)
            made = out if isinstance(out, tuple) else (out,)
            if not all(isinstance(one, Tensor) and one.is_meta for one in made):
                return out
            self._met[key] = [_form(one) for one in made], isinstance(out, tuple)
            return out
        forms, several = self._met[key]
        fresh = tuple(
            torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype, _ in forms
        )
        return fresh if several else fresh[0]


class Trusting(TorchDispatchMode):
    """Code that asks whether values on the meta device, which has none, are as usual hears that they are."""

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asks = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        if asks and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


@cache
def _makes_new_tensors(func: Any) -> bool:
    """Whether an operation changes none of its inputs, and gives back nothing of their memory."""
    schema = func._schema
    aliases = [entry.alias_info for entry in (*schema.arguments, *schema.returns)]
    return not any(aliases) and func.overloadpacket is not torch.ops.aten._unsafe_view


def _form(value: Any) -> Any:
    """What an operation on the meta device can see of an argument."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_form, value))
    return type(value), value


class SavedTensors:
    """The memory of all that autograd keeps for the backward pass, each storage once, the weights apart."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._apart = {_storage(weight) for weight in weights}
        self._bytes: dict[int, int] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Counts what is saved in the `with`; it must be kept alive until after that."""
        hooks: Callable[..., AbstractContextManager[None]] = torch.autograd.graph.saved_tensors_hooks
        return hooks(self._seen, lambda tensor: tensor)

    def _seen(self, tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in self._apart:
            self._bytes[storage] = tensor.untyped_storage().nbytes()
        return tensor

    @property
    def total_bytes(self) -> int:
        return sum(self._bytes.values())


class LiveMemory(TorchDispatchMode):
    """What is held of all memory that was taken in the `with`: also what hooks keep in other forms."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if _makes_new_tensors(func):
            for one in out if isinstance(out, tuple | list) else (out,):
                if isinstance(one, Tensor):
                    storage = one.untyped_storage()
                    self._seen[_storage(one)] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes(self, *apart: Tensor) -> int:
        """apart: tensors whose memory does not count."""
        out = {_storage(tensor) for tensor in apart}
        held = [size for at, (ref, size) in self._seen.items() if at not in out and not ref.expired()]
        return sum(held)


def _storage(tensor: Tensor) -> int:
    """A number that two living tensors share where they share memory; meta tensors have no address."""
    return int(tensor.untyped_storage()._cdata)


class FusedAttention(TorchFunctionMode):
    """Attention by one kernel, as on every real device, which keeps no T × T weights for the backward pass.

    On the meta device PyTorch would take it apart, and keep them.
    """

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return fused_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """query: (B, h, T, d); key, value: (B, h, T', d) → (B, h, T, d)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


def _backward_flops(_grad: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Two products for each of the forward pass, as for any layer: what kernels compute again is left out."""
    return 2 * int(sdpa_flop_count(query.shape, key.shape, value.shape))


ATTENTION_FLOPS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops
}

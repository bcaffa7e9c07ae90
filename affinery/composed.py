"""One frozen backbone with many tasks: the model that is trained, sampled and shipped.

Its class table is the backbone's own, followed by every task's rows at the places that the registry gave them
(DiffScaler, eq. 1): [W_1 … W_N, W_uc, W_{N+2} …]. The null row keeps its index, so classifier-free guidance
works alike for every task. Rows of tasks that are not loaded equal the null row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from affinery.adapters import kind as kind_named
from affinery.adapters.contract import AdaptedLayer
from affinery.adapters.files import Adapter, AdapterMeta
from affinery.adapters.routing import Plan, Route, plan_for
from affinery.backbones.contract import Backbone
from affinery.errors import AdapterBackboneMismatch, AdapterFileInvalid, ConfigInvalid, UnknownName


@dataclass(frozen=True)
class TaskSlot:
    """One task of a composed model: its slot in every stack and its record."""

    slot: int
    meta: AdapterMeta

    def row(self, label: str | int) -> int:
        """The row of one of the task's classes, given by name or by position. Raises UnknownName."""
        names = self.meta.class_names
        if isinstance(label, str):
            if label not in names:
                raise UnknownName(f"class of task {self.meta.task!r}", label, names)
            label = names.index(label)
        if not 0 <= label < len(names):
            raise UnknownName(f"class of task {self.meta.task!r}", str(label), names)
        return self.meta.block[0] + label


class ComposedModel(nn.Module):
    """A backbone and the adapters on it. It takes the backbone over and wraps its layers in place."""

    def __init__(self, backbone: Backbone, fingerprint: str, kind: str = "affiner") -> None:
        super().__init__()
        self.backbone = backbone.freeze()
        self.spec = backbone.spec
        self.fingerprint = fingerprint
        self.kind = kind_named(kind)
        self.route = Route()
        self.slots: dict[str, TaskSlot] = {}
        self.class_rows = nn.ParameterList()  # by task, in the order of slots: (M, D)
        self.layers: dict[str, AdaptedLayer] = {}
        for name, layer in backbone.adaptable().items():
            wrapped = self.kind.wrap(layer, self.route)
            backbone.set_submodule(name, wrapped)
            self.layers[name] = wrapped

    @property
    def null_row(self) -> int:
        return self.spec.null_index

    def task(self, name: str) -> TaskSlot:
        """Raises UnknownName."""
        if name not in self.slots:
            raise UnknownName("task in this model", name, self.slots)
        return self.slots[name]

    def _reserve(self, meta: AdapterMeta) -> TaskSlot:
        """Checks that a task fits, and makes room for it in every layer."""
        if meta.task in self.slots:
            raise ConfigInvalid("task", f"{meta.task!r} is in this model already; remove it or name another.")
        if meta.backbone != self.fingerprint:
            raise AdapterBackboneMismatch(meta.task, self.fingerprint, meta.backbone)
        if meta.kind != self.kind.name:
            raise ConfigInvalid(
                "kind", f"{meta.task!r} is of kind {meta.kind!r}, this model of {self.kind.name!r}."
            )
        for other in self.slots.values():
            low, high = other.meta.block
            if meta.block[0] < high and low < meta.block[1]:
                raise ConfigInvalid(
                    "block", f"{meta.task!r} and {other.meta.task!r} claim the same class rows."
                )
        config = self.kind.config(meta.config)
        slot = max(layer.add_slot(config) for layer in self.layers.values())
        self.class_rows.append(nn.Parameter(self._null_rows(len(meta.class_names))))
        self.slots[meta.task] = TaskSlot(slot, meta)
        return self.slots[meta.task]

    def _null_rows(self, count: int) -> Tensor:
        return self.backbone.class_table[self.null_row].detach().repeat(count, 1)

    def start(self, meta: AdapterMeta, generator: torch.Generator) -> TaskSlot:
        """A new task before its training: every layer equals the frozen one, every class row the null row."""
        task = self._reserve(meta)
        for layer in self.layers.values():
            layer.initialise(task.slot, generator)
        return task

    def load(self, adapter: Adapter) -> TaskSlot:
        """Adds a trained task. Where it raises, nothing has changed.

        Raises AdapterBackboneMismatch, AdapterFileInvalid or ConfigInvalid.
        """
        given = adapter.layers()
        self._check_fit(adapter, given)
        task = self._reserve(adapter.meta)
        for name, layer in self.layers.items():
            layer.load(task.slot, given[name])
        with torch.no_grad():
            self.class_rows[-1].copy_(adapter.tensors["class_rows"])
        return task

    def _check_fit(self, adapter: Adapter, given: dict[str, dict[str, Tensor]]) -> None:
        """Every layer must be given, each part in its shape, before anything is changed."""
        origin = f"the adapter of {adapter.meta.task!r}"
        if given.keys() != self.layers.keys():
            odd = sorted(given.keys() ^ self.layers.keys())
            raise AdapterFileInvalid(
                origin, f"layer {odd[0]!r} is on one side only: it was made for other layers."
            )
        width = self.backbone.class_table.shape[1]
        if tuple(adapter.tensors["class_rows"].shape) != (len(adapter.meta.class_names), width):
            raise AdapterFileInvalid(
                origin, f"its class rows are not {len(adapter.meta.class_names)} × {width}."
            )
        config = self.kind.config(adapter.meta.config)
        for name, layer in self.layers.items():
            probe = self.kind.wrap(layer.base, Route())
            try:
                probe.load(probe.add_slot(config), given[name])
            except ValueError as error:
                raise AdapterFileInvalid(origin, f"layer {name!r}: {error}.") from error

    def adapter(self, task: str) -> Adapter:
        """One task's tensors, copied out of the stacks."""
        found = self.task(task)
        tensors = {
            f"layers.{name}.{part}": tensor.detach().clone()
            for name, layer in self.layers.items()
            for part, tensor in layer.tensors(found.slot).items()
        }
        tensors["class_rows"] = self._rows_of(found).detach().clone()
        return Adapter(found.meta, tensors)

    def _rows_of(self, task: TaskSlot) -> Tensor:
        rows: Tensor = self.class_rows[task.slot - 1]
        return rows

    def class_table(self) -> Tensor:
        """(R, D): the whole table, up to the last row that a loaded task owns."""
        parts = [self.backbone.class_table]
        at = self.null_row + 1
        for task in sorted(self.slots.values(), key=lambda task: task.meta.block):
            low, high = task.meta.block
            if low > at:
                parts.append(self._null_rows(low - at))
            parts.append(self._rows_of(task))
            at = high
        return torch.cat(parts)

    def plan(self, tasks: Sequence[str | None]) -> Plan:
        """How a batch of these tasks is computed; None is the untouched backbone."""
        return plan_for([0 if name is None else self.task(name).slot for name in tasks])

    def denoise(self, x: Tensor, t: Tensor, rows: Tensor, plan: Plan, keep: Tensor | None = None) -> Tensor:
        """The prediction for a batch that may mix tasks.

        x: (B, C, H, W); t: (B,); rows: (B,) rows of the class table; keep: (B, K) or None
        → (B, C, H, W), or (B, K, P) patches where `keep` was given.
        """
        with self.route.using(plan):
            return self.backbone.denoise(x, t, nn.functional.embedding(rows, self.class_table()), keep)

    def forward(self, x: Tensor, t: Tensor, rows: Tensor, tasks: Sequence[str | None]) -> Tensor:
        return self.denoise(x, t, rows, self.plan(tasks))

    def frozen_state(self) -> dict[str, Any]:
        """The backbone's own tensors under their own names, as they were before any layer was wrapped."""
        state = {}
        for name, tensor in self.backbone.state_dict().items():
            for layer in self.layers:
                if name.startswith(f"{layer}."):
                    inner = name.removeprefix(f"{layer}.")
                    name = f"{layer}.{inner.removeprefix('base.')}" if inner.startswith("base.") else ""
                    break
            if name:
                state[name] = tensor
        return state

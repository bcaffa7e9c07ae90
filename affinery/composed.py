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
from affinery.adapters.contract import AdaptedLayer, Config
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

    def _check(self, meta: AdapterMeta) -> Config:
        """Whether a task may join this model. → its kind's settings. Nothing is changed."""
        if meta.backbone != self.fingerprint:
            raise AdapterBackboneMismatch(meta.task, self.fingerprint, meta.backbone)
        if meta.task in self.slots:
            raise ConfigInvalid("task", f"{meta.task!r} is in this model already; remove it or name another.")
        if meta.kind != self.kind.name:
            raise ConfigInvalid(
                "kind", f"{meta.task!r} is of kind {meta.kind!r}, this model of {self.kind.name!r}."
            )
        low, high = meta.block
        if meta.null_index != self.null_row or low <= self.null_row or high - low != len(meta.class_names):
            raise ConfigInvalid(
                "block",
                f"[{low}, {high}) are not {len(meta.class_names)} rows after the null row {self.null_row}.",
            )
        for other in self.slots.values():
            if low < other.meta.block[1] and other.meta.block[0] < high:
                raise ConfigInvalid(
                    "block", f"{meta.task!r} and {other.meta.task!r} claim the same class rows."
                )
        return self.kind.config(meta.config)

    def _make_room(self, meta: AdapterMeta, config: Config) -> TaskSlot:
        """A slot in every layer for a task that was checked."""
        slot = max(layer.add_slot(config) for layer in self.layers.values())
        self.class_rows.append(nn.Parameter(self._null_rows(len(meta.class_names))))
        self.slots[meta.task] = TaskSlot(slot, meta)
        return self.slots[meta.task]

    def _null_rows(self, count: int) -> Tensor:
        return self.backbone.class_table[self.null_row].detach().repeat(count, 1)

    def start(self, meta: AdapterMeta, generator: torch.Generator) -> TaskSlot:
        """A new task before its training: every layer equals the frozen one, every class row the null row.

        Raises AdapterBackboneMismatch or ConfigInvalid; then nothing has changed.
        """
        task = self._make_room(meta, self._check(meta))
        for layer in self.layers.values():
            layer.initialise(task.slot, generator)
        return task

    def load(self, adapter: Adapter) -> TaskSlot:
        """Adds a trained task. Where it raises, nothing has changed.

        Raises AdapterBackboneMismatch, AdapterFileInvalid or ConfigInvalid.
        """
        config = self._check(adapter.meta)
        given = adapter.layers()
        self._check_fit(adapter, given, config)
        task = self._make_room(adapter.meta, config)
        for name, layer in self.layers.items():
            layer.load(task.slot, given[name])
        with torch.no_grad():
            self.class_rows[-1].copy_(adapter.tensors["class_rows"])
        return task

    def _check_fit(self, adapter: Adapter, given: dict[str, dict[str, Tensor]], config: Config) -> None:
        """Every layer must be given, each part in its shape."""
        origin = f"the adapter of {adapter.meta.task!r}"
        if given.keys() != self.layers.keys():
            odd = sorted(given.keys() ^ self.layers.keys())
            raise AdapterFileInvalid(
                origin, f"layer {odd[0]!r} is on one side only: it was made for other layers."
            )
        shape = [len(adapter.meta.class_names), self.backbone.class_table.shape[1]]
        rows = adapter.tensors.get("class_rows")
        if rows is None or list(rows.shape) != shape:
            raise AdapterFileInvalid(origin, f"its class rows are not {shape[0]} × {shape[1]}.")
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

    def embed(self, rows: Tensor) -> Tensor:
        """(B,) rows of the class table → (B, D), as `class_table()[rows]`, whose gaps may be wide."""
        if not self.slots:
            return nn.functional.embedding(rows, self.backbone.class_table)
        tasks = sorted(self.slots.values(), key=lambda task: task.meta.block)
        lows, highs = torch.tensor([task.meta.block for task in tasks], device=rows.device).T.contiguous()
        firsts = self.null_row + 1 + (highs - lows).cumsum(0) - (highs - lows)  # in the table without gaps
        task = (torch.bucketize(rows, lows, right=True) - 1).clamp(min=0)
        own = (rows >= lows[task]) & (rows < highs[task])
        at = torch.where(own, rows - lows[task] + firsts[task], rows.clamp(max=self.null_row))
        table = torch.cat([self.backbone.class_table, *(self._rows_of(task) for task in tasks)])
        return nn.functional.embedding(at, table)

    def plan(self, tasks: Sequence[str | None]) -> Plan:
        """How a batch of these tasks is computed; None is the untouched backbone."""
        slots = [0 if name is None else self.task(name).slot for name in tasks]
        return plan_for(slots, self.backbone.class_table.device)

    def denoise(self, x: Tensor, t: Tensor, rows: Tensor, plan: Plan, keep: Tensor | None = None) -> Tensor:
        """The prediction for a batch that may mix tasks.

        x: (B, C, H, W); t: (B,); rows: (B,) rows of the class table; keep: (B, K) or None
        → (B, C, H, W), or (B, K, P) patches where `keep` was given.
        """
        with self.route.using(plan):
            return self.backbone.denoise(x, t, self.embed(rows), keep)

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

"""One frozen backbone with many tasks: the model that is trained, sampled and shipped.

Its class table is the backbone's own, followed by every task's rows at the places that the registry gave them
(DiffScaler, eq. 1): [W_1 … W_N, W_uc, W_{N+2} …]. The null row keeps its index, so classifier-free guidance
works alike for every task. Rows of tasks that are not loaded equal the null row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from affinery.adapters.contract import Config, Kind
from affinery.adapters.files import STEM, Adapter, AdapterMeta
from affinery.adapters.routing import BACKBONE, Plan, Route, fixed_plan, plan_for
from affinery.adapters.sites import AdaptedSite, Bank
from affinery.admission import admitted, check_tensors
from affinery.backbones.contract import Backbone, Site
from affinery.class_table import PackedTable
from affinery.conditions import ConditionStem, hints, stem_for
from affinery.errors import ConfigInvalid, UnknownName
from affinery.folding import Folding, Remainder
from affinery.merge_recipe import Weight
from affinery.recompute import LEVELS, Cheap


@dataclass(frozen=True)
class TaskSlot:
    """One task of a composed model: its group, its slot in that group's stacks, and its record."""

    group: int
    slot: int
    meta: AdapterMeta
    rows: nn.Parameter  # (M, D)
    stem: ConditionStem | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.group, self.slot

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


@dataclass
class Group:
    """Tasks of one kind and one config. sites: the modules that they change; free: slots given back."""

    number: int
    kind: Kind[Any]
    config: Config
    sites: tuple[str, ...]
    used: int = 1  # slots ever given out, slot 0 included
    free: list[int] = field(default_factory=list)


class ComposedModel(nn.Module):
    """A backbone and the adapters on it. It takes the backbone over and wraps its modules in place."""

    def __init__(self, backbone: Backbone, fingerprint: str) -> None:
        super().__init__()
        self.backbone = backbone.freeze()
        self.spec = backbone.spec
        self.fingerprint = fingerprint
        self.route = Route()
        self.slots: dict[str, TaskSlot] = {}
        self.groups: dict[int, Group] = {}
        self.adapted: dict[str, AdaptedSite] = {}
        self.disabled: set[str] = set()
        self.sites: dict[str, Site] = dict(backbone.sites())
        self._holders = {name: _holder(backbone, name) for name in self.sites}
        self._rows = nn.ParameterDict()
        self._table: PackedTable | None = None
        self._stems = nn.ModuleDict()
        self._folded: Folding | None = None
        self._compiled: Any = None
        self._options: dict[str, Any] = {}  # of torch.compile
        self._level = "none"  # of what training computes again

    @property
    def null_row(self) -> int:
        return self.spec.null_index

    @property
    def device(self) -> torch.device:
        return self.backbone.class_table.device

    def task(self, name: str) -> TaskSlot:
        """Raises UnknownName."""
        if name not in self.slots:
            raise UnknownName("task in this model", name, self.slots)
        return self.slots[name]

    def _check_unfolded(self) -> None:
        """Raises ConfigInvalid while a task is in the weights."""
        if self._folded is not None:
            raise ConfigInvalid("model", f"{self._folded.task!r} is folded into it; unfold it first.")

    def _group(self, kind: Kind[Any], config: Config) -> Group:
        """The group of tasks of this kind and config, its modules wrapped if it is new.

        One that trains takes nobody in: an optimizer holds its stacks, and may change every slot of them.
        """
        for group in self.groups.values():
            if group.kind is kind and group.config == config and not self._trains(group):
                return group
        sites = kind.choose(self.sites, config)
        banks = {name: Bank(kind, config, self.sites[name]) for name in sites}
        group = Group(max(self.groups, default=0) + 1, kind, config, sites)
        for name, bank in banks.items():
            self._adapted(name).banks[str(group.number)] = bank
        self.groups[group.number] = group
        self._compile_anew()
        return group

    def _trains(self, group: Group) -> bool:
        return any(bank.learns for bank in self.banks(group).values())

    def _adapted(self, name: str) -> AdaptedSite:
        if name not in self.adapted:
            parent, attribute = self._holders[name]
            self.adapted[name] = AdaptedSite(self.sites[name], self.route)
            setattr(parent, attribute, self.adapted[name])
        return self.adapted[name]

    def banks(self, group: Group) -> dict[str, Bank]:
        """A group's stacked tensors, by module."""
        found = {name: self.adapted[name].bank(group.number) for name in group.sites}
        return {name: bank for name, bank in found.items() if bank is not None}

    def _join(self, meta: AdapterMeta, group: Group, spare: bool) -> TaskSlot:
        """A slot for a task that was checked. spare: make room for more, so that loading many stays cheap."""
        slot = group.free.pop() if group.free else group.used
        group.used = max(group.used, slot + 1)
        grown = False
        for bank in self.banks(group).values():
            if slot >= bank.capacity:
                bank.grow(slot + 1 + (slot // 2 if spare else 0))
                grown = True
        if grown:
            self._compile_anew()
        null_rows = self._null_rows(len(meta.class_names))
        own = torch.float64 if null_rows.dtype == torch.float64 else torch.float32  # as in the stacks
        rows = nn.Parameter(null_rows.to(own), requires_grad=False)
        self._rows[_key(meta.task)] = rows
        stem = self.stem(meta)
        if stem is not None:
            self._stems[_key(meta.task)] = stem
        self.slots[meta.task] = TaskSlot(group.number, slot, meta, rows, stem)
        return self.slots[meta.task]

    def stem(self, meta: AdapterMeta, device: torch.device | str | None = None) -> ConditionStem | None:
        """A condition task's stem, not yet initialised. Raises ConfigInvalid where it cannot enter."""
        if meta.condition is None:
            return None
        with torch.device(device or self.device):
            return stem_for(self.backbone, meta.condition, meta.image_size)

    def _null_rows(self, count: int) -> Tensor:
        return self.backbone.class_table[self.null_row].detach().repeat(count, 1)

    def start(self, meta: AdapterMeta, generator: torch.Generator) -> TaskSlot:
        """A new task before its training: every layer equals the frozen one, every class row the null row.

        Raises AdapterBackboneMismatch or ConfigInvalid; then nothing has changed.
        """
        self._check_unfolded()
        kind, config = admitted(self, meta)
        group = self._group(kind, config)
        task = self._join(meta, group, spare=False)
        for name, bank in self.banks(group).items():
            bank.load(task.slot, kind.initial(self.sites[name], config, generator))
        if task.stem is not None:
            task.stem.initialise(generator)
        return task

    def load(self, adapter: Adapter) -> TaskSlot:
        """Adds a trained task. Where it raises, nothing has changed.

        Raises AdapterBackboneMismatch, AdapterFileInvalid or ConfigInvalid.
        """
        self._check_unfolded()
        kind, config = admitted(self, adapter.meta)
        check_tensors(self, adapter, kind, config)
        given = adapter.layers()
        group = self._group(kind, config)
        task = self._join(adapter.meta, group, spare=True)
        for name, bank in self.banks(group).items():
            bank.load(task.slot, given[name])
        with torch.no_grad():
            task.rows.copy_(adapter.tensors["class_rows"])
        if task.stem is not None:
            task.stem.load(adapter.stem())
        return task

    def unload(self, name: str) -> None:
        """Takes a task out; the others stay as they are, to the bit. Raises UnknownName or ConfigInvalid."""
        task = self.task(name)
        self._check_unfolded()
        group = self.groups[task.group]
        del self.slots[name]
        if any(other.group == task.group for other in self.slots.values()):
            for bank in self.banks(group).values():
                bank.clear(task.slot)
            group.free.append(task.slot)
        else:
            for site in group.sites:
                del self.adapted[site].banks[str(group.number)]
            del self.groups[task.group]
            self._compile_anew()
        del self._rows[_key(name)]
        if task.stem is not None:
            del self._stems[_key(name)]
        self.disabled.discard(name)

    def close_gaps(self) -> None:
        """Moves the tasks of each group to its slots 1, 2, …, and gives the room of all others back."""
        for number, group in self.groups.items():
            there = sorted((t for t in self.slots.values() if t.group == number), key=lambda t: t.slot)
            rows = [0, *(task.slot for task in there)]
            for bank in self.banks(group).values():
                bank.keep(rows)
            for slot, task in enumerate(there, 1):
                self.slots[task.meta.task] = replace(task, slot=slot)
            group.used, group.free = len(rows), []
        self._compile_anew()

    @contextmanager
    def disable(self, *names: str) -> Iterator[None]:
        """For a while these tasks (all, where none is named) are computed as the untouched backbone."""
        chosen = {self.task(name).meta.task for name in names} if names else set(self.slots)
        before, self.disabled = self.disabled, self.disabled | chosen
        try:
            yield
        finally:
            self.disabled = before & self.slots.keys()

    def adapter(self, task: str) -> Adapter:
        """One task's tensors, copied out of the stacks. Raises UnknownName or ConfigInvalid."""
        found = self.task(task)
        self._check_unfolded()
        tensors = {
            f"layers.{name}.{part}": tensor.detach().clone()
            for name, bank in self.banks(self.groups[found.group]).items()
            for part, tensor in bank.tensors(found.slot).items()
        }
        tensors["class_rows"] = found.rows.detach().clone()
        if found.stem is not None:
            tensors |= {f"{STEM}{name}": t.detach().clone() for name, t in found.stem.tensors().items()}
        return Adapter(found.meta, tensors)

    def merge(
        self, name: str, weights: Mapping[str, float | Weight], block: tuple[int, int] | None = None
    ) -> TaskSlot:
        """A new task that is the weighted sum of others of its kind: y + Σ weight · (their change of y).

        It is exact in every layer. Its class rows, at `block` or where nobody's are, are its members' one
        after the other. Raises UnknownName or ConfigInvalid; then nothing has changed.
        """
        from affinery.merging import free_block, merged

        self._check_unfolded()
        for task in weights:
            if self.task(task).stem is not None or self.image_size(task) != self.spec.image_size:
                raise ConfigInvalid("merge", f"{task!r} has a condition or a size of its own.")
        return self.load(merged(self, name, weights, block or free_block(self, weights)))

    def class_table(self) -> Tensor:
        """(R, D): the whole table, up to the last row that a loaded task owns."""
        parts = [self.backbone.class_table]
        at = self.null_row + 1
        for task in sorted(self.slots.values(), key=lambda task: task.meta.block):
            low, high = task.meta.block
            if low > at:
                parts.append(self._null_rows(low - at))
            parts.append(task.rows.to(parts[0].dtype))
            at = high
        return torch.cat(parts)

    def embed(self, rows: Tensor) -> Tensor:
        """(B,) rows of the class table → (B, D), as `class_table()[rows]`, whose gaps may be wide."""
        if not self.slots:
            return nn.functional.embedding(rows, self.backbone.class_table)
        tasks = sorted(self.slots.values(), key=lambda task: task.meta.block)
        parts = [self.backbone.class_table, *(task.rows for task in tasks)]
        table = self._table
        if table is None or not table.serves(parts):
            table = PackedTable(parts, [task.meta.block for task in tasks])
        self._table = None if table.trains else table
        return table.look_up(rows).to(self.backbone.class_table.dtype)

    def image_size(self, task: str | None) -> int:
        """The side of a task's images, in pixels. Raises UnknownName."""
        own = None if task is None else self.task(task).meta.image_size
        return own or self.spec.image_size

    def hint(self, tasks: Sequence[str | None], conditions: Sequence[Tensor | None]) -> Tensor | None:
        """What the conditions of a batch add after the first layer, zeros where a task is told none.

        conditions: one a sample, (C, H, W) in [−1, 1] → (B, *hint_shape), or None where no task is told one.
        Raises UnknownName and ConfigInvalid.
        """
        off = self.disabled
        stems = [None if name is None or name in off else self.task(name).stem for name in tasks]
        hint = hints(stems, conditions, self.backbone.hint_shape(self.image_size(tasks[0])))
        return None if hint is None else hint.to(self.backbone.class_table.dtype)

    def plan(self, tasks: Sequence[str | None]) -> Plan:
        """How a batch of these tasks is computed; None is the untouched backbone. Raises UnknownName."""
        places = [self._place(name) for name in tasks]
        if self._compiled is not None and self._folded is None:
            plan = fixed_plan(places, sorted(self.groups), self.device)
        else:
            plan = plan_for(places, self.device)
        return replace(plan, tasks=tuple(dict(zip(tasks, places, strict=True)).items()))

    def _place(self, name: str | None) -> tuple[int, int]:
        """Where a task's tensors lie now. Raises UnknownName, or ConfigInvalid where it cannot be drawn."""
        off = name is None or name in self.disabled
        if self._folded is not None and (off or name != self._folded.task):
            raise ConfigInvalid(
                "model", f"{self._folded.task!r} is folded into it, and nothing else can be drawn."
            )
        return BACKBONE if name is None or off else self.task(name).place

    def _check_plan(self, plan: Plan) -> None:
        """Raises UnknownName or ConfigInvalid where a plan's tasks are not where they were."""
        for name, place in plan.tasks:
            if self._place(name) != place:
                raise ConfigInvalid("plan", f"{name!r} has moved, or was switched off or on; make it anew.")

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        rows: Tensor,
        plan: Plan,
        keep: Tensor | None = None,
        text: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Tensor:
        """The prediction for a batch that may mix tasks.

        x: (B, C, H, W); t: (B,); rows: (B,) rows of the class table; keep, text, hint: as the backbone's
        → (B, C, H, W), or (B, K, P) patches where `keep` was given.
        Raises UnknownName or ConfigInvalid where the plan's tasks have gone or moved since it was made.
        """
        self._check_plan(plan)
        compute = self._compiled or self.backbone.denoise
        with self.route.using(plan), self._keeping():
            out: Tensor = compute(x, t, self.embed(rows), keep, text, hint)
        return out

    def look(self) -> None:
        """Lets the kinds of tasks in training look at their tensors: once a step, before its first pass.

        Layers then need not wait for the device; those that nobody looked at for do.
        """
        for group in self.groups.values():
            if self._trains(group):
                group.kind.look([*self.banks(group).values()])

    def looked(self) -> tuple[Any, ...]:
        """What was decided by that for every layer: another form of pass where it is another."""
        banks = (bank for group in self.groups.values() for bank in self.banks(group).values())
        return tuple(None if bank.findings is None else bank.findings.form for bank in banks)

    def _keeping(self) -> AbstractContextManager[None]:
        """What a pass keeps for its gradients."""
        if self._level == "cheap" and torch.is_grad_enabled():
            return Cheap().watching()
        return nullcontext()

    def forward(self, x: Tensor, t: Tensor, rows: Tensor, tasks: Sequence[str | None]) -> Tensor:
        return self.denoise(x, t, rows, self.plan(tasks))

    def compiled(self, **options: Any) -> ComposedModel:
        """Compiles the backbone with its tasks as one graph, which serves every mix of them. → self

        Every batch then takes every group's product, a row that is of another group with its slot 0.
        options: of torch.compile.
        """
        self._options = {"fullgraph": True} | options
        self._compiled = torch.compile(_own_copy(self.backbone.denoise), **self._options)
        return self

    def _compile_anew(self) -> None:
        """Drops the graph where groups or their room have changed: it could serve no batch any more."""
        if self._compiled is not None:
            self.compiled(**self._options)

    def recompute(self, level: str = "block") -> ComposedModel:
        """What training computes again instead of keeping it, one of `LEVELS`. → self

        The numbers are the same. cheap: what follows from kept tensors by a few operations an element, where
        the backbone tells of it; block: gradient checkpointing, each block computed twice and only its input
        kept.
        """
        if level not in LEVELS:
            raise ConfigInvalid("recompute", f"{level!r} is none of {', '.join(LEVELS)}.")
        self._level = level
        for name, site in self.sites.items():
            if site.role in ("block", "residual") and (level == "block" or name in self.adapted):
                self._adapted(name).recomputed = level == "block"
        return self

    def compiled_blocks(self, **options: Any) -> ComposedModel:
        """Compiles each block by itself, for training. → self

        Blocks are alike, so one graph serves all of them. options: of torch.compile.
        """
        for name, site in self.sites.items():
            if site.role in ("block", "residual"):
                (self.adapted.get(name) or site.module).compile(**options)
        return self

    def fold(self, task: str) -> Remainder:
        """Puts one task into the weights as far as that is exact; other tasks cannot be computed meanwhile.

        → what stays beside the weights, and why. Raises UnknownName or ConfigInvalid.
        """
        found = self.task(task)
        self._check_unfolded()
        self._folded = Folding(self, found)
        return self._folded.remainder

    def unfold(self) -> None:
        """Puts the backbone's own weights back, the very same tensors."""
        if self._folded is None:
            raise ConfigInvalid("model", "no task is folded into it.")
        self._folded.undo()
        self._folded = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not compiled: what was compiled computes the original."""
        state: dict[str, Any] = super().__getstate__()
        return state | {"_compiled": None}

    def frozen_state(self) -> dict[str, Tensor]:
        """The backbone's own tensors under their own names, as they were before any module was wrapped.

        Raises ConfigInvalid while a task is folded into them.
        """
        self._check_unfolded()
        return dict(_own_tensors(self.backbone, ""))


def _own_copy(method: Any) -> Any:
    """A bound method whose code is an object of its own: graphs are kept, and counted, by code object."""
    function = method.__func__
    code, names = function.__code__.replace(), function.__globals__
    copied = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return MethodType(copied, method.__self__)


def _key(task: str) -> str:
    """A task's name as a module's attribute may be called."""
    return task.encode().hex()


def _holder(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds another, and under which attribute."""
    parent, _, attribute = name.rpartition(".")
    return root.get_submodule(parent), attribute


def _own_tensors(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """A module's tensors by name, as if no module in it had been wrapped."""
    if isinstance(module, AdaptedSite):
        yield from _own_tensors(module.base, prefix)
        return
    kept = module._non_persistent_buffers_set
    own = [*module._parameters.items(), *((n, b) for n, b in module._buffers.items() if n not in kept)]
    for name, tensor in own:
        if tensor is not None:
            yield f"{prefix}{name}", tensor.detach()
    for name, child in module._modules.items():
        if child is not None:
            yield from _own_tensors(child, f"{prefix}{name}.")

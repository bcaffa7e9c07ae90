"""Modules of the network with room for tasks: a frozen one and, by group, the stacked tensors of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from affinery.adapters.contract import Config, Kind, check_parts
from affinery.adapters.routing import Blocks, Choice, Mix, Plan, Route, Share
from affinery.backbones.contract import Site
from affinery.errors import ConfigInvalid


class Bank(nn.Module):
    """The tensors of one group of tasks (one kind, one config) at one module.

    Each part is one parameter (S, *shape), a task being a slot of it; slot 0 does nothing. It holds float32
    (float64 where the module does), whatever number type the module computes in.

    While tasks are trained, some slots of each part are parameters of their own (`expose`), so that nothing
    is moved, averaged or given a gradient but what learns. findings: what the kind knows of the tensors.
    """

    def __init__(self, kind: Kind[Any], config: Config, site: Site) -> None:
        super().__init__()
        self.kind, self.config, self.site = kind, config, site
        self.shapes = kind.parts(site, config)
        self.findings: Any = None
        self.exposed: dict[str, nn.Parameter] = {}
        self._range = Blocks(0, 0)  # of the slots that are exposed
        self._ready: tuple[Any, dict[str, Tensor]] = ((), {})
        like = next(site.module.parameters())
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        for name, part in self.shapes.items():
            stack = torch.full((1, *part.shape), part.neutral, dtype=dtype, device=like.device)
            self.register_parameter(name, nn.Parameter(stack, requires_grad=False))

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not in training: its stacks hold the values of what was exposed."""
        return self.__dict__ | {"exposed": {}, "findings": None, "_ready": ((), {})}

    @property
    def capacity(self) -> int:
        return len(self.stack(next(iter(self.shapes))))

    @property
    def measured(self) -> Tensor | None:
        """() what the last pass that learnt found out, by which the next one goes."""
        return None if self.findings is None else cast("Tensor | None", self.findings.overlap)

    @property
    def learns(self) -> bool:
        return bool(self.exposed) or any(stack.requires_grad for stack in self.parameters())

    def stack(self, part: str) -> nn.Parameter:
        """(S, *shape)"""
        return cast(nn.Parameter, self._parameters[part])

    def expose(self, first: int, count: int) -> dict[str, nn.Parameter]:
        """Those slots of each part as a parameter that trains, in the stack's own memory."""
        rows = slice(first, first + count)
        self._range = Blocks(first, count)
        self.exposed = {name: nn.Parameter(self.stack(name).detach()[rows]) for name in self.shapes}
        return self.exposed

    def conceal(self) -> None:
        """Ends the training of what is exposed; the stacks have its values."""
        self.exposed, self.findings = {}, None

    def keep(self, slots: Sequence[int]) -> None:
        """These slots and no others, in this order."""
        if list(slots) != list(range(self.capacity)):
            for name in self.shapes:
                self.place(name, self.stack(name).detach()[list(slots)])

    def place(self, part: str, memory: Tensor) -> None:
        """Moves a stack into memory that others share. memory: (S, *shape) and the same values."""
        self.register_parameter(part, nn.Parameter(memory, requires_grad=False))

    def grow(self, slots: int) -> None:
        """Room for so many slots, those new doing nothing."""
        for name, part in self.shapes.items():
            old = self.stack(name)
            if len(old) < slots:
                new = old.detach().new_full((slots, *part.shape), part.neutral)
                new[: len(old)] = old.detach()
                self.register_parameter(name, nn.Parameter(new, requires_grad=old.requires_grad))

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """The task's own tensors by part, as views of the stacks."""
        if self.exposed and 0 <= slot - self._range.first < self._range.count:
            return {name: own[slot - self._range.first] for name, own in self.exposed.items()}
        return {name: self.stack(name)[slot] for name in self.shapes}

    @torch.no_grad()
    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Sets a task's tensors. Raises ValueError, then nothing has changed."""
        check_parts(self.shapes, tensors)
        for name, tensor in tensors.items():
            self.stack(name)[slot].copy_(tensor)

    @torch.no_grad()
    def clear(self, slot: int) -> None:
        for name, part in self.shapes.items():
            self.stack(name)[slot].fill_(part.neutral)

    def pick(self, choice: Choice) -> dict[str, Tensor]:
        """The tensors of the tasks of a batch by part, (G, *shape)."""
        if not self.exposed:
            return taken_from({name: self.stack(name) for name in self.shapes}, choice)
        if choice == self._range:
            return dict(self.exposed)
        return taken_from({name: self._with_exposed(name) for name in self.shapes}, choice)

    def _with_exposed(self, part: str) -> Tensor:
        """(S, *shape): a stack whose exposed slots have gradients."""
        stack, first, last = self.stack(part), self._range.first, self._range.first + self._range.count
        return torch.cat([stack[:first], self.exposed[part], stack[last:]])

    def ready(self, choice: Choice, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same as the kind prepares them, worked out anew only where a tensor has changed."""
        if torch.compiler.is_compiling():
            return self.kind.prepare(self.site, self.config, self.pick(choice), dtype)
        stacks = [self.stack(name) for name in self.shapes]
        if any(stack.is_inference() for stack in stacks):  # nobody counts their versions
            return self.kind.prepare(self.site, self.config, self.pick(choice), dtype)
        stamp = (dtype, *((id(stack), stack._version) for stack in stacks))
        if self._ready[0] != stamp:
            whole = {name: self.stack(name) for name in self.shapes}
            self._ready = stamp, self.kind.prepare(self.site, self.config, whole, dtype)
        return taken_from(self._ready[1], choice)


def taken_from(stacks: Mapping[str, Tensor], choice: Choice) -> dict[str, Tensor]:
    """Of each stack the rows of a batch: a view where they lie beside each other."""
    if isinstance(choice, Blocks):
        rows = slice(choice.first, choice.first + choice.count)
        return {name: stack[rows] for name, stack in stacks.items()}
    return {name: stack[choice.slots] for name, stack in stacks.items()}


class AdaptedSite(nn.Module):
    """A frozen module of the network, with what tasks change about it."""

    def __init__(self, site: Site, route: Route) -> None:
        super().__init__()
        self.site = site
        self.base = site.module
        self.route = route
        self.banks = nn.ModuleDict()  # by group
        self.recomputed = False  # whether training computes it again instead of keeping what lies in between

    def bank(self, group: int) -> Bank | None:
        key = str(group)
        return cast(Bank, self.banks[key]) if key in self.banks else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.route.under_way and in_backward():
            raise ConfigInvalid(
                "gradient checkpointing",
                "a module is computed again after its pass, when it no longer knows of whom. "
                "Use ComposedModel.recompute() instead of the backbone's own.",
            )
        if self.recomputed and torch.is_grad_enabled():
            plan = self.route.plan  # the one of now: when it is computed again, another may be set

            def again(x: Tensor, *args: Any) -> Tensor:
                with self.route.using(plan):
                    return self._forward(x, *args, **kwargs)

            return checkpoint(again, x, *args, use_reentrant=False)
        return self._forward(x, *args, **kwargs)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plan = self.route.plan
        if len(plan.shares) == 1:
            return self._of_one_group(plan.shares[0], x, *args, **kwargs)
        banks = [self.bank(share.group) for share in plan.shares]
        if not any(bank is not None for bank in banks):
            return cast(Tensor, self.base(x, *args, **kwargs))
        if any(bank is not None and bank.kind.replaces for bank in banks):
            return self._replaced(plan, x, *args, **kwargs)
        y: Tensor = self.base(x, *args, **kwargs)
        if not plan.split:
            for share, bank in zip(plan.shares, banks, strict=True):
                if bank is not None:
                    y = self._adapt(bank, share, x, y)
            return y
        pieces = []
        for share, bank in zip(plan.shares, banks, strict=True):
            y_share = y[share.rows]
            pieces.append(y_share if bank is None else self._adapt(bank, share, x[share.rows], y_share))
        return in_order(pieces, plan)

    def _of_one_group(self, share: Share, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A batch whose samples are all of one group, in the fewest steps: most batches are."""
        bank = self.bank(share.group)
        if bank is None:
            return cast(Tensor, self.base(x, *args, **kwargs))
        if bank.kind.replaces:
            return self._run(share, x, *args, **kwargs)
        return self._adapt(bank, share, x, self.base(x, *args, **kwargs))

    def _adapt(self, bank: Bank, share: Share, x: Tensor, y: Tensor) -> Tensor:
        kind, config, choice = bank.kind, bank.config, share.choice
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return kind.learn(self.site, config, bank, choice, x, y)
        return kind.adapt(self.site, config, bank.ready(choice, y.dtype), x, y)

    def _replaced(self, plan: Plan, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `_forward`, where some share's kind computes the module's output anew."""
        if plan.split:
            pieces = []
            for share in plan.shares:
                some = [taken(value, share.rows, len(x)) for value in args]
                named = {name: taken(value, share.rows, len(x)) for name, value in kwargs.items()}
                with self.route.using(plan.alone(share)):
                    pieces.append(self._forward(x[share.rows], *some, **named))
            return in_order(pieces, plan)
        y: Tensor = self.base(x, *args, **kwargs)
        for share in plan.shares:
            bank = self.bank(share.group)
            if bank is not None and bank.kind.replaces:
                assert isinstance(share.choice, Mix)
                own = (share.choice.slots > 0).reshape(-1, *[1] * (y.dim() - 1))
                y = torch.where(own, self._run(share, x, *args, **kwargs), y)
            elif bank is not None:
                y = self._adapt(bank, share, x, y)
        return y

    def _run(self, share: Share, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bank = self.bank(share.group)
        assert bank is not None
        return bank.kind.run(self.site, bank.config, bank, share.choice, x, *args, **kwargs)


def in_backward() -> bool:
    """Whether autograd is at work in this thread, which then computes something again."""
    return torch.is_grad_enabled() and torch._C._current_graph_task_id() >= 0


def taken(value: Any, rows: Tensor | None, batch: int) -> Any:
    """An argument's rows, where it has one a sample."""
    if isinstance(value, Tensor) and value.dim() and len(value) == batch:
        return value[rows]
    return value


def in_order(pieces: list[Tensor], plan: Plan) -> Tensor:
    """The shares' outputs as one batch."""
    whole = torch.cat(pieces)
    return whole if plan.order is None else whole[plan.order]

"""Training N tasks in one pass over one frozen backbone.

Every task has its own random streams, its own clipping, its own schedule and its own mean loss; the loss is
the sum of the means. So the gradients of one task do not depend on which others train beside it, and training
together gives what training alone gives, to rounding. Tasks may join and leave while the others go on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from affinery.adapters.files import Adapter, AdapterMeta
from affinery.adapters.routing import Plan
from affinery.adapters.sites import Bank
from affinery.composed import ComposedModel
from affinery.diffusion.objective import l_simple, without_variance
from affinery.diffusion.schedule import NoiseSchedule
from affinery.errors import ConfigInvalid, UnknownName
from trainers.arena import ROUNDING, Arena
from trainers.errors import TrainingDiverged
from trainers.graphs import Graphs, Inputs
from trainers.learner import Learner
from trainers.ranks import ALONE, Ranks
from trainers.recipe import Recipe
from trainers.streams import Batch, TaskData, TaskStream


@dataclass
class Clock:
    """Seconds spent in steps, and of these in waiting for data: drawn, put together and moved."""

    steps: float = 0.0
    waiting: float = 0.0

    @property
    def idle(self) -> float:
        return self.waiting / self.steps if self.steps else 0.0


class CoTraining:
    """The training of one or more tasks on one backbone: built, resumed, stepped, finished.

    finished: the adapters of tasks that are done while others still train; model holds the others alone.
    """

    def __init__(
        self, model: ComposedModel, tasks: Sequence[TaskData], recipe: Recipe, ranks: Ranks = ALONE
    ) -> None:
        if not tasks:
            raise ConfigInvalid("tasks", "there is none to train.")
        if model.slots:
            # Their slots would lie in the same tensors, and weight decay would reach them.
            raise ConfigInvalid("model", "it holds tasks already; train in a model of its own.")
        self.model, self.recipe = model, recipe
        self.ranks, self.part = ranks, ranks.part(recipe.batch)
        self.schedule = NoiseSchedule(model.spec)
        self.device = model.backbone.class_table.device
        table = model.backbone.class_table.dtype
        self.dtype = table if table == torch.float64 else torch.float32  # of the tasks' tensors and losses
        self.half = halved(recipe.precision, self.device)
        self.graphs = Graphs(recipe.graphs == "on", self.device)
        self.step = 0
        self.clock = Clock()
        self.order: list[str] = []  # as asked for
        self.records: dict[str, AdapterMeta] = {}
        self.learners: list[Learner] = []
        self.finished: dict[str, Adapter] = {}
        self.arenas: dict[int, list[Arena]] = {}  # by group
        self.optimizer: torch.optim.AdamW
        self.plans: dict[tuple[tuple[str, ...], int], Plan] = {}
        self.join(*tasks)
        model.recompute(recipe.recompute)
        if recipe.compile == "blocks":
            model.compiled_blocks()

    def join(self, *tasks: TaskData) -> None:
        """Takes tasks in, whose schedules begin now. Raises ConfigInvalid; then nothing has changed."""
        self._check(tasks)
        joined: list[Learner] = []
        self._conceal()
        try:
            for data in tasks:
                stream = TaskStream(data, self.recipe, self.model.null_row, 0, self.schedule.steps)
                self.model.start(data.meta, torch.Generator().manual_seed(self.recipe.seed))
                stream.tokens = self._tokens(data.meta.task)
                joined.append(Learner(data, self.recipe, stream))
        except BaseException:
            for learner in joined:
                self.model.unload(learner.name)
            if self.learners:
                self._arrange()
            raise
        self.order += [data.meta.task for data in tasks]
        self.records |= {data.meta.task: data.meta for data in tasks}
        self.learners += joined
        self._arrange()

    def leave(self, *names: str) -> list[Adapter]:
        """Takes tasks out as far as they have learnt; the others go on as if they had never been there.

        Raises UnknownName, TrainingDiverged, or ConfigInvalid where nobody would be left.
        """
        leaving = [self.learner(name) for name in names]
        if len(leaving) == len(self.learners):
            raise ConfigInvalid("tasks", "nobody would be left to train; finish the training instead.")
        adapters = [self._settled(learner) for learner in leaving]
        self.dismiss(dict(zip(names, adapters, strict=True)))
        return adapters

    def dismiss(self, adapters: Mapping[str, Adapter]) -> None:
        """Lets tasks go whose adapters are known."""
        self._conceal()
        for name, adapter in adapters.items():
            self.learners.remove(self.learner(name))
            self.model.unload(name)
            self.finished[name] = adapter
        self._arrange()

    def learner(self, name: str) -> Learner:
        """A task that trains. Raises UnknownName."""
        for learner in self.learners:
            if learner.name == name:
                return learner
        raise UnknownName("task in this training", name, [learner.name for learner in self.learners])

    def banks(self, learner: Learner) -> dict[str, Bank]:
        """By layer, the tensors of a task and of those in its group."""
        return self.model.banks(self.model.groups[self.model.task(learner.name).group])

    @property
    def tasks(self) -> list[TaskData]:
        return [learner.data for learner in self.learners]

    @property
    def streams(self) -> list[TaskStream]:
        return [learner.stream for learner in self.learners]

    @property
    def done(self) -> bool:
        return all(learner.done for learner in self.learners)

    def _check(self, tasks: Sequence[TaskData]) -> None:
        """Raises ConfigInvalid where these tasks cannot train so, or not together."""
        model = self.model
        if self.recipe.mask_ratio > 0 and not model.backbone.tokens:
            arch = model.spec.arch
            raise ConfigInvalid("mask_ratio", f"{arch} has no tokens to mask; train it with mask_ratio=0.")
        sizes = {data.meta.image_size or model.spec.image_size for data in (*self.tasks, *tasks)}
        if len(sizes) > 1:
            listing = " and ".join(map(str, sorted(sizes)))
            raise ConfigInvalid(
                "tasks", f"images of {listing} pixels cannot share a batch; train them apart."
            )
        for data in tasks:
            if data.meta.task in self.finished:
                raise ConfigInvalid("tasks", f"{data.meta.task!r} has been trained here already.")
            if (data.conditions is None) != (data.meta.condition is None):
                raise ConfigInvalid("dataset", f"the conditions of task {data.meta.task!r} are not its own.")

    def _tokens(self, task: str) -> int:
        """How many tokens an image of a task has; 0 where there are none to be masked."""
        _, rows, columns = self.model.backbone.hint_shape(self.model.image_size(task))
        return rows * columns if self.model.backbone.tokens else 0

    def _conceal(self) -> None:
        for group in self.model.groups.values():
            for bank in self.model.banks(group).values():
                bank.conceal()

    def _arrange(self) -> None:
        """Puts what trains into memory of its own; the optimizer keeps what it knew of every tensor."""
        model = self.model
        known = self.optimizer.state if hasattr(self, "optimizer") else {}
        model.close_gaps()
        # Tasks of one group lie beside each other, so that their batches make blocks.
        self.learners.sort(key=lambda learner: model.task(learner.name).place)
        self.arenas = {}
        for number, group in model.groups.items():
            count = group.used - 1
            by_rate: dict[float, list[tuple[Any, str]]] = {}
            for bank in model.banks(group).values():
                for part in bank.shapes:
                    rate = self.recipe.lr * group.kind.learning_rates().get(part, 1.0)
                    by_rate.setdefault(rate, []).append((bank, part))
            self.arenas[number] = [Arena(by_rate[rate], count, rate) for rate in sorted(by_rate)]
            for bank in model.banks(group).values():
                bank.expose(1, count)
            for arena in self.arenas[number]:
                arena.bind()
        before = {learner: learner.tensors for learner in self.learners}
        groups: list[dict[str, Any]] = []
        for learner in self.learners:
            groups += self._own(learner)
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.99), eps=1e-7, weight_decay=self.recipe.weight_decay, fused=True
        )
        for learner in self.learners:
            if not learner.averages:
                learner.begin()
            for name, old in before[learner].items():
                if old in known:
                    self.optimizer.state[learner.tensors[name]] = known[old]
        self.plans.clear()
        self.graphs.forget()

    def _own(self, learner: Learner) -> list[dict[str, Any]]:
        """What a task trains, as the optimizer's groups: each part and the class rows at their own rate."""
        task = self.model.task(learner.name)
        arenas = self.arenas[task.group]
        learner.tensors = {str(i): arena.rows[task.slot - 1] for i, arena in enumerate(arenas)}
        apart: dict[str, Tensor] = {"class_rows": task.rows}
        if task.stem is not None:
            apart |= {f"stem.{name}": tensor for name, tensor in task.stem.tensors().items()}
        for tensor in apart.values():
            tensor.requires_grad_(True)
            tensor.grad = torch.zeros_like(tensor)
        learner.tensors |= apart
        stem = [tensor for name, tensor in apart.items() if name != "class_rows"]
        rates: list[tuple[list[Tensor], float]] = [
            ([arena.rows[task.slot - 1]], arena.rate) for arena in arenas
        ]
        rates += [([task.rows], self.recipe.class_lr), (stem, self.recipe.lr)]
        return [
            {"params": tensors, "lr": rate, "peak": rate, "learner": learner.name}
            for tensors, rate in rates
            if tensors
        ]

    def trained(self) -> dict[str, Tensor]:
        """Every tensor that trains, by name."""
        return {
            f"{i}.{name}": tensor
            for i, learner in enumerate(self.learners)
            for name, tensor in learner.tensors.items()
        }

    def _gradients(self) -> list[Tensor]:
        """All that a step's gradients are, in as few tensors as there are."""
        found = [arena.gradients for arenas in self.arenas.values() for arena in arenas]
        for learner in self.learners:
            found += [
                t.grad for name, t in learner.tensors.items() if not name.isdigit() and t.grad is not None
            ]
        return found

    def train_step(self) -> dict[str, float]:
        """One step of every task. → the tasks' mean losses. Raises TrainingDiverged."""
        started = time.perf_counter()
        with reproducible(self.recipe.deterministic == "on"):
            self.model.look()
            gradients = self._gradients()
            torch._foreach_zero_(gradients)
            losses = torch.zeros(len(self.learners), device=self.device, dtype=self.dtype)
            for masked in (True, False):
                some = [learner for learner in self.learners if learner.masked == masked]
                if some:
                    self._passes(some, masked, losses, gradients)
            self._share(losses, gradients)
            self._drop_rounding()
            self._clip()
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * self.learner(group["learner"]).rate
            self.optimizer.step()
            for learner in self.learners:
                learner.average()
        values: list[float] = losses.tolist()  # the only time that a step waits for the device
        told = {learner.name: value for learner, value in zip(self.learners, values, strict=True)}
        for name, value in told.items():
            if not math.isfinite(value):
                raise TrainingDiverged(name, self.step)
        self.step += 1
        for learner in self.learners:
            learner.advance(told[learner.name])
        over = [learner.name for learner in self.learners if learner.done]
        if 0 < len(over) < len(self.learners):
            self.leave(*over)
        self.clock.steps += time.perf_counter() - started
        return {name: told[name] for name in self.order if name in told}

    def _passes(
        self, learners: Sequence[Learner], masked: bool, losses: Tensor, gradients: list[Tensor]
    ) -> None:
        """Forward and backward of some tasks' batches, in as many passes as the recipe says."""
        started = time.perf_counter()
        batches = [learner.stream.next(masked).cut(self.part) for learner in learners]
        self.clock.waiting += time.perf_counter() - started
        names = tuple(learner.name for learner in learners)
        where = torch.tensor([self.learners.index(learner) for learner in learners], device=self.device)
        own = self.part.stop - self.part.start
        count = min(self.recipe.accumulate, own)
        for i in range(count):
            started = time.perf_counter()
            cut = slice(own * i // count, own * (i + 1) // count)
            parts = [batch.cut(cut) for batch in batches]
            inputs, plan = self._inputs(parts, names), self._plan(names, cut.stop - cut.start)
            self.clock.waiting += time.perf_counter() - started
            conditions = [part.condition for part in parts]
            compute = partial(self._pass, plan=plan, names=names, conditions=conditions)
            if any(one is not None for one in conditions):  # their stems are lists of tensors to a graph
                found = compute(inputs)
            else:
                found = self.graphs.run((names, self.model.looked()), compute, inputs, gradients)
            losses.index_add_(0, where, found.to(losses))

    def _share(self, losses: Tensor, gradients: list[Tensor]) -> None:
        """All processes go on with the same numbers, so that what one of them saves is the state of all."""
        if self.ranks.count == 1:
            return
        banks = (bank for group in self.model.groups.values() for bank in self.model.banks(group).values())
        measured = [bank.measured for bank in banks if bank.measured is not None]
        self.ranks.sum([losses, *gradients, *measured])
        for one in measured:
            one.div_(self.ranks.count)

    def _plan(self, names: tuple[str, ...], each: int) -> Plan:
        """How a batch with so many samples of each task is computed."""
        if (names, each) not in self.plans:
            self.plans[names, each] = self.model.plan([name for name in names for _ in range(each)])
        return self.plans[names, each]

    def _inputs(self, batches: Sequence[Batch], names: Sequence[str]) -> Inputs:
        """Several tasks' samples as one batch on the device."""
        together: Inputs = {
            name: self._moved(torch.cat([getattr(batch, name) for batch in batches]))
            for name in ("x0", "t", "noise", "rows")
        }
        kept = [batch.keep for batch in batches if batch.keep is not None]
        together["keep"] = self._moved(torch.cat(kept)) if kept else None
        together["text"] = self._text(batches, names)
        return together

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _pass(
        self, inputs: Inputs, plan: Plan, names: Sequence[str], conditions: Sequence[Tensor | None]
    ) -> Tensor:
        """Adds one pass's gradients. → its part of the tasks' mean losses (tasks,)"""
        x0, t, noise, rows = (some(inputs[name]) for name in ("x0", "t", "noise", "rows"))
        keep, each = inputs["keep"], len(x0) // len(names)
        target = self.schedule.target(x0, t, noise)
        x_t = self.schedule.diffuse(x0, t, noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            hint = self._hint(names, conditions, each)
            predicted = self.model.denoise(x_t, t, rows, plan, keep, inputs["text"], hint)
        if keep is not None:
            patches = self.model.backbone.patches(target)
            target = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[-1]))
        predicted = without_variance(predicted, target, x0.shape[1])
        if self.half:
            predicted = predicted.float()
        losses = l_simple(predicted, target).reshape(len(names), each).sum(dim=1) / self.recipe.batch
        losses.sum().backward()
        return losses.detach()

    def _text(self, batches: Sequence[Batch], names: Sequence[str]) -> Tensor | None:
        """(tasks · B, L, E); None where no task has captions."""
        captions = [self.learner(name).data.captions for name in names]
        empty = next((told.embedded[:1] for told in captions if told is not None), None)
        if empty is None:
            return None  # the backbone itself takes the empty caption
        told = [empty.expand(len(b.x0), -1, -1) if b.text is None else b.text for b in batches]
        return self._moved(torch.cat(told))

    def _hint(self, names: Sequence[str], conditions: Sequence[Tensor | None], each: int) -> Tensor | None:
        """(tasks · B, *hint_shape); None where no task is told a condition."""
        if all(condition is None for condition in conditions):
            return None
        told: list[Tensor | None] = []
        for condition in conditions:
            told += [None] * each if condition is None else list(condition)
        return self.model.hint([name for name in names for _ in range(each)], told)

    @torch.no_grad()
    def _drop_rounding(self) -> None:
        for arenas in self.arenas.values():
            for arena in arenas:
                arena.drop_rounding()
        for learner in self.learners:
            for name, tensor in learner.tensors.items():
                if name.startswith("stem.") and tensor.grad is not None:
                    tensor.grad.masked_fill_(tensor.grad.abs() < ROUNDING * tensor.grad.abs().amax(), 0)

    @torch.no_grad()
    def _clip(self) -> None:
        """Scales each task's gradient on its own to at most `clip_norm`, over all its tensors."""
        for learner in self.learners:
            own = [tensor.grad for tensor in learner.tensors.values() if tensor.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(own))))
            torch._foreach_mul_(own, (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0))

    def run(self, on_step: Callable[[int, Mapping[str, float]], None] | None = None) -> None:
        """Trains to the end, from wherever it stands."""
        while not self.done:
            losses = self.train_step()
            if on_step is not None:
                on_step(self.step, losses)

    def _settled(self, learner: Learner) -> Adapter:
        """A task's adapter, of its running means. Raises TrainingDiverged."""
        learner.settle()
        adapter = self.model.adapter(learner.name)
        if not all(bool(tensor.isfinite().all()) for tensor in adapter.tensors.values()):
            raise TrainingDiverged(learner.name, self.step)
        return adapter

    def finish(self) -> list[Adapter]:
        """Puts the averaged tensors in place and takes each task's adapter out. Raises TrainingDiverged.

        The model then holds them all, also those that were done before.
        """
        there = {learner.name: self._settled(learner) for learner in self.learners}
        self._conceal()
        for learner in self.learners:
            for tensor in learner.tensors.values():
                tensor.requires_grad_(False)
        for name, adapter in self.finished.items():
            if name not in self.model.slots:
                self.model.load(adapter)
        return [(there | self.finished)[name] for name in self.order]


def some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def halved(precision: str, device: torch.device) -> bool:
    """Whether passes run in bf16."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


@contextmanager
def reproducible(wanted: bool) -> Iterator[None]:
    """Only algorithms that sum in the same order every time; others raise."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:  # what cuBLAS must be told; it reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

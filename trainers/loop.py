"""Training N tasks in one pass over one frozen backbone.

Every task has its own random streams, its own clipping and its own mean loss; the loss is the sum of the
means. So the gradients of one task do not depend on which others train beside it, and training together gives
what training alone gives, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affinery.adapters.files import Adapter, AdapterMeta
from affinery.adapters.routing import Plan
from affinery.composed import ComposedModel
from affinery.diffusion.objective import l_simple, without_variance
from affinery.diffusion.schedule import NoiseSchedule, stratified_steps
from affinery.errors import ConfigInvalid
from trainers.data import as_unit
from trainers.errors import TrainingDiverged
from trainers.recipe import Recipe

ROUNDING = 1e-5
ROUNDING_ANYWHERE = 1e-6


@dataclass(frozen=True)
class Captions:
    """What a task's images are told. embedded: (u, L, E), the empty caption first; which: (n,) of them."""

    embedded: Tensor
    which: Tensor


@dataclass(frozen=True)
class TaskData:
    """A task's images in memory.

    images: (n, C, H, W) bytes, or floats that are denoised as they are, like latents; labels: (n,) from 0 to
    M − 1; captions: for text-conditional backbones; conditions: (n, C', H', W') bytes, in pixels.
    """

    meta: AdapterMeta
    images: Tensor
    labels: Tensor
    captions: Captions | None = None
    conditions: Tensor | None = None


@dataclass
class Batch:
    """What one task contributes to one step: B samples and everything random about them."""

    x0: Tensor  # (B, C, H, W), pixels in [−1, 1]
    rows: Tensor  # (B,) rows of the class table
    t: Tensor  # (B,)
    noise: Tensor  # (B, C, H, W)
    keep: Tensor | None  # (B, K)
    text: Tensor | None  # (B, L, E)
    condition: Tensor | None  # (B, C', H', W') in [−1, 1]


class TaskStream:
    """One task's endless batches, drawn from its own generator: their state is all there is to resume."""

    def __init__(self, data: TaskData, recipe: Recipe, null_row: int, tokens: int, steps: int) -> None:
        self.data, self.recipe = data, recipe
        self.null_row, self.tokens, self.time_steps = null_row, tokens, steps
        self.generator = torch.Generator().manual_seed(recipe.seed)
        order = torch.argsort(data.labels, stable=True)
        classes = len(data.meta.class_names)
        if len(data.labels) != len(data.images) or not bool(
            ((data.labels >= 0) & (data.labels < classes)).all()
        ):
            raise ConfigInvalid("dataset", f"its labels are not those of the {classes} classes of its task.")
        counts = torch.bincount(data.labels, minlength=classes)
        if int(counts.min()) == 0:
            empty = data.meta.class_names[int(counts.argmin())]
            raise ConfigInvalid(
                "dataset", f"class {empty!r} of task {data.meta.task!r} has no image to train on."
            )
        self.by_class, self.counts, self.firsts = order, counts, counts.cumsum(0) - counts

    def next(self, masked: bool) -> Batch:
        """Classes are drawn evenly, then an image of the class; time steps are stratified."""
        generator, size = self.generator, self.recipe.batch
        labels = torch.randint(len(self.counts), (size,), generator=generator)
        within = (torch.rand(size, generator=generator) * self.counts[labels]).long()
        chosen = self.by_class[self.firsts[labels] + within]
        images = self.data.images[chosen]
        x0 = images if images.is_floating_point() else as_unit(images)
        dropped = torch.rand(size, generator=generator) < self.recipe.label_dropout
        rows = torch.where(dropped, self.null_row, labels + self.data.meta.block[0])
        t = stratified_steps(size, self.time_steps, generator)
        noise = torch.randn(x0.shape, generator=generator)
        keep = None
        if masked:
            count = max(1, round(self.tokens * (1 - self.recipe.mask_ratio)))
            order = torch.rand(size, self.tokens, generator=generator).argsort(dim=1)
            keep = order[:, :count].sort(dim=1).values
        return Batch(x0, rows, t, noise, keep, self._text(chosen, dropped), self._condition(chosen))

    def _text(self, chosen: Tensor, dropped: Tensor) -> Tensor | None:
        """A sample without its class is one without its caption too."""
        captions = self.data.captions
        if captions is None:
            return None
        return captions.embedded[captions.which[chosen].masked_fill(dropped, 0)]

    def _condition(self, chosen: Tensor) -> Tensor | None:
        """Never dropped: guidance tells both twins the same."""
        return None if self.data.conditions is None else as_unit(self.data.conditions[chosen])


@dataclass(frozen=True)
class Stack:
    """One stacked tensor (S, …) that trains. owners: (S,) which task has which slot, −1 none."""

    name: str
    tensor: Tensor
    rate: float
    owners: Tensor


def _largest(gradient: Tensor | None) -> Tensor:
    """(S, …) → (S,) the largest size in each slot."""
    assert gradient is not None
    return gradient.abs().reshape(len(gradient), -1).amax(dim=1)


class CoTraining:
    """The training of one or more tasks on one backbone: built, resumed, stepped, finished."""

    def __init__(self, model: ComposedModel, tasks: Sequence[TaskData], recipe: Recipe) -> None:
        if not tasks:
            raise ConfigInvalid("tasks", "there is none to train.")
        if model.slots:
            # Their slots would lie in the same tensors, and weight decay would reach them.
            raise ConfigInvalid("model", "it holds tasks already; train in a model of its own.")
        self._check(model, tasks, recipe)
        self.model, self.recipe, self.tasks = model, recipe, list(tasks)
        self.order = [data.meta.task for data in tasks]  # as asked for
        self.schedule = NoiseSchedule(model.spec)
        self.device = model.backbone.class_table.device
        for data in self.tasks:
            model.start(data.meta, torch.Generator().manual_seed(recipe.seed))
        # Tasks of one group lie beside each other, so that their batches make blocks.
        self.tasks.sort(key=lambda data: model.task(data.meta.task).place)
        self.slots = [model.task(data.meta.task) for data in self.tasks]
        self.streams = [
            TaskStream(data, recipe, model.null_row, self._tokens(), self.schedule.steps)
            for data in self.tasks
        ]
        self.plan: Plan = model.plan([data.meta.task for data in self.tasks for _ in range(recipe.batch)])
        self.step = 0
        self.stacks = self._stacks()
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            betas=(0.9, 0.99),
            eps=1e-7,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.average = {name: tensor.detach().clone() for name, tensor in self.trained().items()}

    @staticmethod
    def _check(model: ComposedModel, tasks: Sequence[TaskData], recipe: Recipe) -> None:
        """Raises ConfigInvalid where these tasks cannot train so, or not together."""
        if recipe.mask_ratio > 0 and not model.backbone.tokens:
            arch = model.spec.arch
            raise ConfigInvalid("mask_ratio", f"{arch} has no tokens to mask; train it with mask_ratio=0.")
        sizes = {data.meta.image_size or model.spec.image_size for data in tasks}
        if len(sizes) > 1:
            listing = " and ".join(map(str, sorted(sizes)))
            raise ConfigInvalid(
                "tasks", f"images of {listing} pixels cannot share a batch; train them apart."
            )
        for data in tasks:
            if (data.conditions is None) != (data.meta.condition is None):
                raise ConfigInvalid("dataset", f"the conditions of task {data.meta.task!r} are not its own.")

    def _tokens(self) -> int:
        """How many tokens an image of these tasks has; 0 where there are none to be masked."""
        _, rows, columns = self.model.backbone.hint_shape(self.model.image_size(self.order[0]))
        return rows * columns if self.model.backbone.tokens else 0

    def _stacks(self) -> list[Stack]:
        """Every stacked tensor of the tasks' groups, and which task of `tasks` is in which slot."""
        found = []
        for number, group in self.model.groups.items():
            owners = [-1] * group.used
            for i, task in enumerate(self.slots):
                if task.group == number:
                    owners[task.slot] = i
            for site, bank in self.model.banks(group).items():
                for part in bank.shapes:
                    rate = self.recipe.lr * group.kind.learning_rates().get(part, 1.0)
                    name = f"layers.{number}.{site}.{part}"
                    found.append(
                        Stack(name, bank.stack(part), rate, torch.tensor(owners, device=self.device))
                    )
        return found

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: each part and the class rows at their own rate."""
        for tensor in self.trained().values():
            tensor.requires_grad_(True)
        groups: list[dict[str, Any]] = [{"params": [stack.tensor], "lr": stack.rate} for stack in self.stacks]
        groups += [{"params": [task.rows], "lr": self.recipe.class_lr} for task in self.slots]
        groups += [
            {"params": list(task.stem.tensors().values()), "lr": self.recipe.lr}
            for task in self.slots
            if task.stem is not None
        ]
        for group in groups:
            group["peak"] = group["lr"]
        return groups

    def trained(self) -> dict[str, Tensor]:
        """Every tensor that trains, by name."""
        stacks = {stack.name: stack.tensor for stack in self.stacks}
        return stacks | {
            name: tensor for i in range(len(self.slots)) for name, tensor in self._own(i).items()
        }

    def _own(self, i: int) -> dict[str, Tensor]:
        """What the i-th task trains beside its slots in the stacks: its class rows and its stem."""
        task = self.slots[i]
        stem = {} if task.stem is None else task.stem.tensors()
        return {f"class_rows.{i}": task.rows} | {f"stem.{i}.{name}": tensor for name, tensor in stem.items()}

    def train_step(self) -> list[float]:
        """One step of every task. → the tasks' mean losses, as asked for. Raises TrainingDiverged."""
        masked = self.recipe.mask_ratio > 0 and self.step < round(
            self.recipe.steps * (1 - self.recipe.unmasked_share)
        )
        batches = [stream.next(masked) for stream in self.streams]
        x0, t, noise, rows = (
            torch.cat([getattr(batch, name) for batch in batches]).to(self.device)
            for name in ("x0", "t", "noise", "rows")
        )
        keep = (
            torch.cat([batch.keep for batch in batches if batch.keep is not None]).to(self.device)
            if masked
            else None
        )
        target = self.schedule.target(x0, t, noise)
        x_t, text, hint = self.schedule.diffuse(x0, t, noise), self._text(batches), self._hint(batches)
        predicted = self.model.denoise(x_t, t, rows, self.plan, keep, text, hint)
        if keep is not None:
            patches = self.model.backbone.patches(target)
            target = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[-1]))
        predicted = without_variance(predicted, target, x0.shape[1])
        losses = l_simple(predicted, target).reshape(len(self.tasks), -1).mean(dim=1)  # (tasks,)
        values: list[float] = losses.tolist()
        for data, value in zip(self.tasks, values, strict=True):
            if not math.isfinite(value):
                raise TrainingDiverged(data.meta.task, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._drop_rounding()
        self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.recipe.rate(self.step)
        self.optimizer.step()
        self._average()
        self.step += 1
        by_name = {data.meta.task: value for data, value in zip(self.tasks, values, strict=True)}
        return [by_name[name] for name in self.order]

    def _text(self, batches: Sequence[Batch]) -> Tensor | None:
        """(tasks · B, L, E); None where no task has captions."""
        empty = next((data.captions.embedded[:1] for data in self.tasks if data.captions is not None), None)
        if empty is None:
            return None  # the backbone itself takes the empty caption
        told = [empty.expand(len(b.x0), -1, -1) if b.text is None else b.text for b in batches]
        return torch.cat(told).to(self.device)

    def _hint(self, batches: Sequence[Batch]) -> Tensor | None:
        """(tasks · B, *hint_shape); None where no task is told a condition."""
        if all(batch.condition is None for batch in batches):
            return None
        names = [data.meta.task for data in self.tasks for _ in range(self.recipe.batch)]
        told: list[Tensor | None] = []
        for batch in batches:
            told += [None] * len(batch.x0) if batch.condition is None else list(batch.condition)
        return self.model.hint(names, told)

    @torch.no_grad()
    def _drop_rounding(self) -> None:
        """Sets gradients to zero that are rounding error beside the largest of their task's tensor.

        Some directions have no effect at all, like a shift of all keys, which softmax does not see. Their
        gradient is nothing but rounding, which depends on what else is in the batch, and Adam would blow it
        up to full steps. Where that is a whole tensor, as the shift of a layer that makes keys only, it shows
        beside the same part of the task's other layers.
        """
        parts: dict[str, list[Stack]] = {}
        for stack in self.stacks:
            if stack.tensor.grad is not None:
                parts.setdefault(f"{stack.name.split('.')[1]} {stack.name.split('.')[-1]}", []).append(stack)
        for stacks in parts.values():
            sizes = [_largest(stack.tensor.grad) for stack in stacks]
            anywhere = torch.stack(sizes).amax(dim=0)  # (S,)
            for stack, own in zip(stacks, sizes, strict=True):
                gradient = stack.tensor.grad
                assert gradient is not None
                floor = torch.maximum(ROUNDING * own * (gradient.dim() > 1), ROUNDING_ANYWHERE * anywhere)
                floor = floor.reshape(-1, *[1] * (gradient.dim() - 1))
                gradient.masked_fill_(gradient.abs() < floor, 0)
        for task in self.slots:
            for tensor in () if task.stem is None else task.stem.tensors().values():
                if tensor.grad is not None:
                    tensor.grad.masked_fill_(tensor.grad.abs() < ROUNDING * tensor.grad.abs().amax(), 0)

    @torch.no_grad()
    def _clip(self) -> None:
        """Scales each task's gradient on its own to at most `clip_norm`, over all its tensors."""
        squares = torch.zeros(len(self.tasks) + 1, device=self.device)  # the last for slots of no task
        for stack in self.stacks:
            if stack.tensor.grad is not None:
                own = stack.tensor.grad.reshape(len(stack.owners), -1).square().sum(dim=1)
                squares.index_add_(0, stack.owners % len(squares), own.to(squares.dtype))
        for i in range(len(self.slots)):
            for tensor in self._own(i).values():
                if tensor.grad is not None:
                    squares[i] += tensor.grad.square().sum()
        factors = (self.recipe.clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for stack in self.stacks:
            if stack.tensor.grad is not None:
                own = factors[stack.owners]
                stack.tensor.grad.mul_(own.reshape(-1, *[1] * (stack.tensor.grad.dim() - 1)))
        for i in range(len(self.slots)):
            for tensor in self._own(i).values():
                if tensor.grad is not None:
                    tensor.grad.mul_(factors[i])

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema_decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.trained().values()), 1 - decay)

    def run(self, on_step: Callable[[int, list[float]], None] | None = None) -> None:
        """Trains to the end, from wherever it stands."""
        while self.step < self.recipe.steps:
            losses = self.train_step()
            if on_step is not None:
                on_step(self.step, losses)

    def finish(self) -> list[Adapter]:
        """Puts the averaged tensors in place and takes each task's adapter out. Raises TrainingDiverged."""
        with torch.no_grad():
            for name, tensor in self.trained().items():
                tensor.copy_(self.average[name])
                tensor.requires_grad_(False)
        for group in self.model.groups.values():
            for bank in self.model.banks(group).values():
                bank.clear(0)  # where weight decay moved what does nothing at another value than zero
        adapters = [self.model.adapter(name) for name in self.order]
        for adapter in adapters:
            if not all(bool(tensor.isfinite().all()) for tensor in adapter.tensors.values()):
                raise TrainingDiverged(adapter.meta.task, self.step)
        return adapters

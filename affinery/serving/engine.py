"""Continuous micro-batching: each pass of the network advances images of several requests by one step.

A request may join between any two steps of others, and leaves when its images are done, its deadline has
passed or nobody waits for it any more. Its images come from its seeds alone. What else is in the batch
changes them by rounding only: by at most `TOLERANCE` in [−1, 1], in float32.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from affinery.adapters.files import Adapter
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import SamplerSettings, starting_noise
from affinery.diffusion.schedule import scheduler
from affinery.errors import AffineryError, ConfigInvalid
from affinery.serving.fairness import Turns
from affinery.serving.versions import Version, Versions

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

TOLERANCE = 1e-3


class QueueFull(AffineryError):
    """As many images wait as may. Args: how many wait, how many may."""

    def __str__(self) -> str:
        waiting, most = self.args
        return f"{waiting} images wait already, and {most} may. Ask again in a moment, or for fewer."


class TooLate(AffineryError):
    """A request's deadline passed. Args: seconds."""

    def __str__(self) -> str:
        return f"It was not drawn within the {self.args[0]:g} s that it had. Give it longer, or fewer steps."


class Stopped(AffineryError):
    """The engine was stopped."""

    def __str__(self) -> str:
        return "The server is stopping; ask another, or again."


@dataclass(frozen=True)
class Ask:
    """What to draw: one image a row and seed. deadline_seconds: from now; None waits as long as it takes.

    task: as the model calls it, a version's slot. prompt, condition: what all its images are told, the latter
    (C, H, W) in [−1, 1].
    """

    task: str
    rows: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: SamplerSettings
    tenant: str = ""
    deadline_seconds: float | None = None
    prompt: str = ""
    condition: Tensor | None = None


@dataclass
class Ticket:
    """A request under way. images: resolves to (n, C, H, W) in [−1, 1].

    text: (L, E), its caption; hint: the backbone's `hint_shape`, what its condition adds.
    """

    ask: Ask
    since: float
    text: Tensor | None = None
    hint: Tensor | None = None
    images: Future[Tensor] = field(default_factory=Future)
    done: int = 0  # steps of all its images together
    drawn: dict[int, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.ask.settings.steps * len(self.ask.rows)

    @property
    def late(self) -> bool:
        limit = self.ask.deadline_seconds
        return limit is not None and time.monotonic() - self.since > limit


@dataclass(eq=False)
class Canvas:
    """One image of a request, after `at` of its steps. x: (C, H, W)."""

    ticket: Ticket
    place: int
    x: Tensor
    at: int = 0

    @property
    def tenant(self) -> str:
        return self.ticket.ask.tenant


class Engine:
    """Draws in a thread of its own.

    batch: images in one pass; most_waiting: images that may be under way; numbers: the tasks' versions.
    """

    def __init__(
        self,
        model: ComposedModel,
        batch: int = 16,
        most_waiting: int = 256,
        on_pass: Callable[[int], None] = lambda _: None,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        self.versions = Versions(model, numbers or {})
        self._uncaptioned: Tensor | None = None  # (L, E), the empty caption
        self.model, self.batch, self.most_waiting, self.on_pass = model, batch, most_waiting, on_pass
        self._canvases: list[Canvas] = []
        self._errands: list[tuple[Callable[[ComposedModel], Any], Future[Any]]] = []
        self._turns = Turns()
        self._schedules: dict[int, DDIMScheduler] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._canvases)

    def submit(self, ask: Ask) -> Ticket:
        """Raises QueueFull, Stopped, and ConfigInvalid or UnknownName for what cannot be drawn."""
        model = self.model
        if ask.settings.steps > self._schedule(1).config.num_train_timesteps:
            raise ConfigInvalid("steps", f"{ask.settings.steps} is more than the backbone knows.")
        self.check_room(len(ask.rows))
        noise = starting_noise(model, ask.seeds, model.image_size(ask.task))
        ticket = Ticket(ask, time.monotonic(), self._text(ask.prompt), self._hint(ask))
        scale = self._schedule(1).init_noise_sigma
        with self._changed:
            if self._stopped:
                raise Stopped
            self.check_room(len(noise))
            model.task(ask.task)  # a version may have been dropped meanwhile
            self._canvases += [Canvas(ticket, i, x.to(model.device) * scale) for i, x in enumerate(noise)]
            self._changed.notify()
        return ticket

    def check_room(self, count: int) -> None:
        """Raises QueueFull."""
        if len(self._canvases) + count > self.most_waiting:
            raise QueueFull(len(self._canvases), self.most_waiting)

    @torch.no_grad()
    def _text(self, prompt: str) -> Tensor | None:
        """(L, E). Raises ConfigInvalid where the backbone takes no captions."""
        return self.model.backbone.encode_text([prompt])[0] if prompt else None

    @torch.no_grad()
    def _hint(self, ask: Ask) -> Tensor | None:
        """What a request's condition adds; it is the same in every pass. Raises ConfigInvalid."""
        if ask.condition is not None and self.model.task(ask.task).stem is None:
            raise ConfigInvalid("condition", f"the task {ask.task!r} is told none.")
        hint = self.model.hint([ask.task], [ask.condition])
        return None if hint is None else hint[0]

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: its images are dropped before the next pass."""
        ticket.images.cancel()

    def between_passes(self, errand: Callable[[ComposedModel], Any]) -> Future[Any]:
        """Has the model changed, by loading a task say, while no pass is under way. Raises Stopped."""
        done: Future[Any] = Future()
        with self._changed:
            if self._stopped:
                raise Stopped
            self._errands.append((errand, done))
            self._changed.notify()
        return done

    def take(self, adapter: Adapter, number: int) -> Version:
        """Takes a version of a task in between two passes, and drops the one before the last when it is idle.

        Raises what loading it raises; then nothing has changed.
        """
        version: Version = self.between_passes(lambda _: self.versions.take(adapter, number)).result()
        self.tidy()
        return version

    def tidy(self) -> list[Version]:
        """Drops versions that are more than are kept and with which nothing is drawn. → those"""
        dropped: list[Version] = self.between_passes(lambda _: self.drop_idle()).result()
        return dropped

    def drop_idle(self) -> list[Version]:
        """The same, for an errand of that kind."""
        with self._changed:
            busy = {canvas.ticket.ask.task for canvas in self._canvases}
            idle = [version for version in self.versions.superseded() if version.slot not in busy]
            for version in idle:
                self.versions.drop(version)
            return idle

    def stop(self) -> None:
        """Ends after the pass under way; who waits is told."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._canvases or self._errands or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    for _, done in self._errands:
                        done.set_exception(Stopped())
                    self._fail([canvas.ticket for canvas in self._canvases], Stopped())
                    return
                errands, self._errands = self._errands, []
            for errand, done in errands:
                _settle(done, errand, self.model)
            with self._changed:
                self._sort_out()
                chosen = self._turns.choose(self._canvases, self.batch, lambda canvas: canvas.x.shape)
            if chosen:
                try:
                    self._advance(chosen)
                except Exception as error:  # noqa: BLE001 - its requests fail, the server does not
                    self._fail([canvas.ticket for canvas in chosen], error)

    def _sort_out(self) -> None:
        """Drops the images of requests that are over."""
        for ticket in {id(canvas.ticket): canvas.ticket for canvas in self._canvases}.values():
            if ticket.late and not ticket.images.done():
                self._fail([ticket], TooLate(ticket.ask.deadline_seconds))
        self._canvases = [canvas for canvas in self._canvases if not canvas.ticket.images.done()]

    def _fail(self, tickets: list[Ticket], error: Exception) -> None:
        for ticket in tickets:
            if not ticket.images.done():
                ticket.images.set_exception(error)

    @torch.no_grad()
    def _advance(self, chosen: list[Canvas]) -> None:
        """One pass: every image a step further. Guided ones stand beside their unconditional twins.

        Images of one task stand together: where tasks have equal shares, their products are one batched one.
        """
        model, device = self.model, self.model.device
        chosen = sorted(chosen, key=lambda canvas: model.task(canvas.ticket.ask.task).place)
        xs: list[Tensor] = []
        times: list[int] = []
        rows: list[int] = []
        tasks: list[str] = []
        texts: list[Tensor | None] = []
        hints: list[Tensor | None] = []
        starts: list[int] = []
        for canvas in chosen:
            ask = canvas.ticket.ask
            t = int(self._schedule(ask.settings.steps).timesteps[canvas.at])
            own = [ask.rows[canvas.place], model.null_row][: 1 + (ask.settings.guidance != 1.0)]
            starts.append(len(rows))
            rows += own
            xs += [canvas.x] * len(own)
            times += [t] * len(own)
            tasks += [ask.task] * len(own)
            texts += [canvas.ticket.text, None][: len(own)]  # the twin has no caption, but the condition
            hints += [canvas.ticket.hint] * len(own)
        predicted = model.denoise(
            torch.stack(xs),
            torch.tensor(times, device=device),
            torch.tensor(rows, device=device),
            model.plan(tasks),
            text=self._captions(texts),
            hint=_together(hints),
        )[:, : chosen[0].x.shape[0]]
        self.on_pass(len(chosen))  # before anybody has an image of it
        for canvas, at in zip(chosen, starts, strict=True):
            self._step(canvas, predicted[at], predicted[at + 1 : at + 2])

    def _captions(self, texts: list[Tensor | None]) -> Tensor | None:
        """(B, L, E), the empty caption where a sample has none; None where no sample has one."""
        if all(text is None for text in texts):
            return None
        if self._uncaptioned is None:
            self._uncaptioned = self.model.backbone.encode_text([""])[0]
        return torch.stack([self._uncaptioned if text is None else text for text in texts])

    def _step(self, canvas: Canvas, wanted: Tensor, free: Tensor) -> None:
        """free: the twin's prediction, where there is one. (1, C, H, W) or (0, C, H, W)"""
        settings, ticket = canvas.ticket.ask.settings, canvas.ticket
        if settings.guidance != 1.0:
            count = self.model.backbone.guided_channels
            mixed = free[0] + settings.guidance * (wanted - free[0])
            wanted = torch.cat([mixed[:count], wanted[count:]])
        schedule = self._schedule(settings.steps)
        canvas.x = schedule.step(
            wanted[None], int(schedule.timesteps[canvas.at]), canvas.x[None]
        ).prev_sample[0]
        canvas.at += 1
        ticket.done += 1
        if canvas.at == settings.steps:
            ticket.drawn[canvas.place] = self.model.backbone.decode(canvas.x[None])[0].cpu()
            with self._changed:
                self._canvases.remove(canvas)
            if len(ticket.drawn) == len(ticket.ask.rows) and ticket.images.set_running_or_notify_cancel():
                ticket.images.set_result(torch.stack([ticket.drawn[i] for i in range(len(ticket.drawn))]))

    def _schedule(self, steps: int) -> DDIMScheduler:
        """A scheduler of so many steps; it keeps nothing between them."""
        if steps not in self._schedules:
            made = scheduler(self.model.spec)
            made.set_timesteps(steps)
            self._schedules[steps] = made
        return self._schedules[steps]


def _together(hints: list[Tensor | None]) -> Tensor | None:
    """(B, *hint_shape), zeros where a sample is told no condition; None where no sample is told one."""
    given = next((hint for hint in hints if hint is not None), None)
    if given is None:
        return None
    return torch.stack([torch.zeros_like(given) if hint is None else hint for hint in hints])


def _settle(done: Future[Any], errand: Callable[[ComposedModel], Any], model: ComposedModel) -> None:
    try:
        done.set_result(errand(model))
    except Exception as error:  # noqa: BLE001 - whoever asked is told
        done.set_exception(error)

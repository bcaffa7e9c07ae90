"""POST /v1/generate and what stands around it, behind the guard of the registry's service."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field

from affinery import __version__
from affinery.diffusion.sampling import default_settings
from affinery.errors import ConfigInvalid
from affinery.pictures import png_of
from affinery.serving.engine import Ask, Engine, QueueFull, Stopped, Ticket, TooLate
from affinery.serving.versions import Version
from affinery_app.api import problems
from affinery_app.api.access import OneToken, Token
from affinery_app.api.guard import Guard, Limits
from affinery_app.drawing import Telling
from affinery_app.serving.posted import CHARACTERS, posted

BODY_BYTES = 2 * CHARACTERS + (1 << 16)
VERSION = "X-Task-Version"
LOOK_SECONDS = 0.1  # how often a waiting request's client is looked after
EVENTS = "text/event-stream"
STATUSES = ((QueueFull, 429), (TooLate, 504), (Stopped, 503))


class Generate(BaseModel):
    """What to draw. Image i of label j has the seed seed + j · n + i."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str = Field(description="A task's name, or task@version; its newest version where none is named.")
    label: str | int | list[str | int] = Field(description="A class by name or number, or several.")
    n: int = Field(1, ge=1, le=256, description="Images a label.")
    seed: int = Field(0, ge=0, lt=2**62)
    steps: int | None = Field(None, ge=1, le=10_000)
    guidance: float | None = Field(None, ge=0, le=1000)
    deadline_seconds: float | None = Field(None, gt=0)
    prompt: str = Field("", max_length=4000, description="The caption, where the backbone takes captions.")
    condition: str | None = Field(
        None, max_length=CHARACTERS, description="What a task with a condition is told: a PNG in base64."
    )
    condition_from: str | None = Field(
        None,
        max_length=CHARACTERS,
        description="A PNG in base64 whose edges are drawn, for tasks told edges.",
    )


class Figures:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("affinery_requests", "Requests by their end", ["end"], registry=self.registry)
        self.images = Counter("affinery_images", "Images drawn, by task", ["task"], registry=self.registry)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128]
        self.passes = Histogram(
            "affinery_batch_images", "Images in one pass", buckets=sizes, registry=self.registry
        )
        self.seconds = Histogram(
            "affinery_request_seconds", "From a request to its images", registry=self.registry
        )
        self.waiting = Gauge("affinery_waiting_images", "Images under way", registry=self.registry)


def routes(engine: Engine, figures: Figures) -> FastAPI:
    """The routes, with nothing before them."""
    app = FastAPI(title="Affinery model", version=__version__, docs_url=None, redoc_url=None)
    problems.tell(app)
    figures.waiting.set_function(lambda: engine.waiting)

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/tasks")
    def list_tasks() -> dict[str, Any]:
        """Every task: its newest version and those it may be asked for, its classes, what it is told."""
        captions = engine.model.spec.text is not None
        return {
            "tasks": {name: _described(engine, name) for name in engine.versions.tasks()},
            "captions": captions,
        }

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/generate")
    async def generate(
        asked: Generate,
        request: Request,
        accept: Annotated[str, Header()] = "",
        x_tenant: Annotated[str | None, Header()] = None,
    ) -> Response:
        """PNGs as base64 in JSON; one PNG grid for Accept: image/png; progress for text/event-stream."""
        tenant = x_tenant or (request.client.host if request.client else "")
        version = engine.versions.find(asked.task)
        try:
            ticket = await asyncio.to_thread(_submit, engine, version, asked, tenant)
        except (QueueFull, Stopped) as error:
            figures.requests.labels("refused").inc()
            return _refusal(error)
        if EVENTS in accept:
            return StreamingResponse(_events(engine, figures, version, ticket, request), media_type=EVENTS)
        try:
            async for _ in _followed(engine, figures, version, ticket, request):
                pass
            images = ticket.images.result()
        except (TooLate, Stopped) as error:
            return _refusal(error)
        except asyncio.CancelledError:
            return Response(status_code=499)  # nobody reads it
        if "image/png" in accept:
            grid = await asyncio.to_thread(_grid, images, asked.n)
            return Response(grid, media_type="image/png", headers={VERSION: str(version.number or "")})
        return JSONResponse(await asyncio.to_thread(_told, version, ticket, images))

    return app


def guarded(engine: Engine, token: Token | None, figures: Figures) -> Guard:
    limits = Limits(body_bytes=BODY_BYTES)
    return Guard(routes(engine, figures), OneToken(token), limits)


def _described(engine: Engine, task: str) -> dict[str, Any]:
    versions = engine.versions.of(task)
    slot = engine.model.task(versions[-1].slot)
    condition = slot.meta.condition and {key: slot.meta.condition[key] for key in ("name", "channels")}
    return {
        "version": versions[-1].number,
        "versions": [version.number for version in versions if version.number is not None],
        "classes": list(slot.meta.class_names),
        "image_size": engine.model.image_size(versions[-1].slot),
        "condition": condition,
    }


def _submit(engine: Engine, version: Version, asked: Generate, tenant: str) -> Ticket:
    """Raises UnknownName, ConfigInvalid, QueueFull and Stopped."""
    model = engine.model
    slot = model.task(version.slot)
    labels = asked.label if isinstance(asked.label, list) else [asked.label]
    rows = tuple(slot.row(label) for label in labels for _ in range(asked.n))
    engine.check_room(len(rows))  # before a picture is unpacked
    pictures = [posted(name, getattr(asked, name)) for name in ("condition", "condition_from")]
    condition = Telling("", *pictures).to(model, version.slot)
    if condition is None and any(pictures):
        raise ConfigInvalid("condition", f"the task {version.task!r} is told none.")
    ask = Ask(
        version.slot,
        rows,
        tuple(asked.seed + i for i in range(len(rows))),
        default_settings(model, asked.steps, asked.guidance),
        tenant,
        asked.deadline_seconds,
        asked.prompt,
        condition,
    )
    return engine.submit(ask)


async def _followed(
    engine: Engine, figures: Figures, version: Version, ticket: Ticket, request: Request
) -> AsyncIterator[int]:
    """How many steps are done, until the images are there. A client that has gone takes its request along."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    ticket.images.add_done_callback(lambda _: loop.call_soon_threadsafe(over.set))
    end = "failed"
    try:
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), LOOK_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    end = "left"
                    raise asyncio.CancelledError from None
            yield ticket.done
        ticket.images.result()
        end = "drawn"
        figures.images.labels(version.task).inc(len(ticket.ask.rows))
    except TooLate:
        end = "late"
        raise
    finally:
        engine.cancel(ticket)
        figures.requests.labels(end).inc()
        figures.seconds.observe(time.monotonic() - ticket.since)


async def _events(
    engine: Engine, figures: Figures, version: Version, ticket: Ticket, request: Request
) -> AsyncIterator[str]:
    """progress events, then one event `done` with the images, or `failed` with the reason."""
    try:
        async for done in _followed(engine, figures, version, ticket, request):
            yield _event("progress", {"done": done, "of": ticket.total})
        yield _event("done", await asyncio.to_thread(_told, version, ticket, ticket.images.result()))
    except (TooLate, Stopped) as error:
        yield _event("failed", {"detail": str(error)})


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _refusal(error: Exception) -> Response:
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    titles = {429: "Too many images", 503: "Stopping", 504: "Too late"}
    headers = None if status == 504 else {"Retry-After": "1"}
    return problems.problem(status, titles[status], str(error), headers=headers)


def _told(version: Version, ticket: Ticket, images: Any) -> dict[str, Any]:
    pictures = [base64.b64encode(png_of(image)).decode() for image in images]
    return {
        "task": version.task,
        "version": version.number,
        "seeds": list(ticket.ask.seeds),
        "images": pictures,
    }


def _grid(images: Any, columns: int) -> bytes:
    from trainers.pictures import png, tile

    return png(tile(images, min(columns if columns > 1 else 8, len(images)), zoom=1))

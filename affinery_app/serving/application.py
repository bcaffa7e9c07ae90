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
from affinery.pictures import png_of
from affinery.serving.engine import Ask, Engine, QueueFull, Stopped, Ticket, TooLate
from affinery_app.api import problems
from affinery_app.api.access import OneToken, Token
from affinery_app.api.guard import Guard, Limits

LOOK_SECONDS = 0.1  # how often a waiting request's client is looked after
EVENTS = "text/event-stream"
STATUSES = ((QueueFull, 429), (TooLate, 504), (Stopped, 503))


class Generate(BaseModel):
    """What to draw. Image i of label j has the seed seed + j · n + i."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str
    label: str | int | list[str | int] = Field(description="A class by name or number, or several.")
    n: int = Field(1, ge=1, le=256, description="Images a label.")
    seed: int = Field(0, ge=0, lt=2**62)
    steps: int | None = Field(None, ge=1, le=10_000)
    guidance: float | None = Field(None, ge=0, le=1000)
    deadline_seconds: float | None = Field(None, gt=0)


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
        """Every task and its classes."""
        slots = dict(engine.model.slots)
        return {"tasks": {name: list(slot.meta.class_names) for name, slot in slots.items()}}

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
        try:
            ticket = await asyncio.to_thread(engine.submit, _ask(engine, asked, tenant))
        except (QueueFull, Stopped) as error:
            figures.requests.labels("refused").inc()
            return _refusal(error)
        if EVENTS in accept:
            return StreamingResponse(_events(engine, figures, ticket, request), media_type=EVENTS)
        try:
            async for _ in _followed(engine, figures, ticket, request):
                pass
            images = ticket.images.result()
        except (TooLate, Stopped) as error:
            return _refusal(error)
        except asyncio.CancelledError:
            return Response(status_code=499)  # nobody reads it
        if "image/png" in accept:
            return Response(await asyncio.to_thread(_grid, images, asked.n), media_type="image/png")
        return JSONResponse(await asyncio.to_thread(_told, ticket, images))

    return app


def guarded(engine: Engine, token: Token | None, figures: Figures) -> Guard:
    return Guard(routes(engine, figures), OneToken(token), Limits())


def _ask(engine: Engine, asked: Generate, tenant: str) -> Ask:
    """Raises UnknownName and ConfigInvalid."""
    slot = engine.model.task(asked.task)
    labels = asked.label if isinstance(asked.label, list) else [asked.label]
    rows = tuple(slot.row(label) for label in labels for _ in range(asked.n))
    seeds = tuple(asked.seed + i for i in range(len(rows)))
    settings = default_settings(engine.model, asked.steps, asked.guidance)
    return Ask(asked.task, rows, seeds, settings, tenant, asked.deadline_seconds)


async def _followed(engine: Engine, figures: Figures, ticket: Ticket, request: Request) -> AsyncIterator[int]:
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
        figures.images.labels(ticket.ask.task).inc(len(ticket.ask.rows))
    except TooLate:
        end = "late"
        raise
    finally:
        engine.cancel(ticket)
        figures.requests.labels(end).inc()
        figures.seconds.observe(time.monotonic() - ticket.since)


async def _events(engine: Engine, figures: Figures, ticket: Ticket, request: Request) -> AsyncIterator[str]:
    """progress events, then one event `done` with the images, or `failed` with the reason."""
    try:
        async for done in _followed(engine, figures, ticket, request):
            yield _event("progress", {"done": done, "of": ticket.total})
        yield _event("done", await asyncio.to_thread(_told, ticket, ticket.images.result()))
    except (TooLate, Stopped) as error:
        yield _event("failed", {"detail": str(error)})


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _refusal(error: Exception) -> Response:
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    titles = {429: "Too many images", 503: "Stopping", 504: "Too late"}
    headers = None if status == 504 else {"Retry-After": "1"}
    return problems.problem(status, titles[status], str(error), headers=headers)


def _told(ticket: Ticket, images: Any) -> dict[str, Any]:
    pictures = [base64.b64encode(png_of(image)).decode() for image in images]
    return {"task": ticket.ask.task, "seeds": list(ticket.ask.seeds), "images": pictures}


def _grid(images: Any, columns: int) -> bytes:
    from trainers.pictures import png, tile

    return png(tile(images, min(columns if columns > 1 else 8, len(images)), zoom=1))

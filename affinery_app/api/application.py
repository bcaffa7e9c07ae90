"""The application: every noun's routes, behind the guard; and how it is served."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from affinery import __version__
from affinery_app.api import (
    adapters,
    aliases,
    backbones,
    blobs,
    compositions,
    datasets,
    differences,
    evaluations,
    events,
    exports,
    health,
    jobs,
    limits,
    lineage,
    notes,
    overview,
    problems,
    renamings,
    schedules,
    sessions,
    tags,
    tasks,
    tokens,
    uploads,
    webhooks,
)
from affinery_app.api.access import COOKIE, Door, Registered, is_loopback
from affinery_app.api.errors import CannotListen, ListensOpenly
from affinery_app.api.guard import Guard, Limits
from affinery_app.api.rights import RIGHTS
from affinery_app.dashboard import refusals
from affinery_app.dashboard import routes as dashboard
from affinery_app.wiring import Workspace
from registry.tokens import any_live

# As many as the engine's pool gives connections: nobody waits for one in vain.
AT_ONCE = 15
GRACE_SECONDS = 10
M_ARENA_MAX, HEAPS = -8, 2  # of glibc's malloc.h
NOUNS = (
    *(backbones, datasets, tasks, adapters, lineage, differences, aliases, tags, notes, renamings),
    *(compositions, exports, evaluations, uploads, blobs, jobs, schedules, limits, events, overview),
    *(sessions, tokens, webhooks, health),
)


def routes(space: Workspace) -> FastAPI:
    """Every route of the registry, with nothing before them."""
    app = FastAPI(
        title="Affinery",
        version=__version__,
        description="A registry of adapters for frozen diffusion backbones, and the queue that trains them.",
        docs_url=None,  # the pages that FastAPI brings fetch their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # it would name an address by what the request calls this host
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.space = space
    problems.tell(app)
    for noun in NOUNS:
        app.include_router(noun.router)
    app.router.routes.extend(dashboard.routes())
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def guarded(space: Workspace, door: Door | None = None, limits: Limits | None = None) -> Guard:
    """The application as it is served: for this machine only, where there is no token."""
    door = door or Registered(space.sessions, None, loopback=True)
    return Guard(routes(space), door, limits or Limits(), refusals.as_pages(space))


def door_of(space: Workspace, host: str) -> Registered:
    """Who may come in by this address. Raises ListensOpenly where anybody could."""
    door = Registered(space.sessions, space.token, loopback=is_loopback(host))
    with space.sessions.read() as session:
        if space.token is None and not is_loopback(host) and not any_live(session):
            raise ListensOpenly(host)
    return door


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = AT_ONCE
    yield


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, in which every route may answer with a problem."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = made["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        said = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(said.pop("$defs"), Problem=said)
        refused = {
            "description": "Anything else, as a problem (RFC 9457).",
            "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for path in made["paths"].values():
            for operation in path.values():
                right = RIGHTS[operation["operationId"]]
                if right.scope is None:
                    operation["security"] = []
                operation["x-affinery-scope"] = right.scope
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = refused
        made["components"]["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
        }
        made["servers"] = [{"url": "/"}]  # what it means anyway; some generators want it said
        made["security"] = [{"token": []}, {"session": []}, {}]
        app.openapi_schema = made
    return app.openapi_schema


def bound(host: str, port: int, *, known: bool) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises ListensOpenly, and CannotListen.

    known: whether who comes has to show a token.
    """
    if not known and not is_loopback(host):
        raise ListensOpenly(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, TypeError) as error:
        raise _unheard(host, port, error) from error
    # Headers and body leave in two pieces: without this, the second waits 40 ms for word of the first.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _unheard(host: str, port: int, error: OSError | TypeError) -> CannotListen:
    if isinstance(error, TypeError):  # Python cannot encode it
        reason = "that is the name of no machine"
    else:  # after the system's words Python names the address once more
        reason = str(error.strerror).partition(" (while")[0]
    if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
        return CannotListen(host, port, reason, "Choose another port with --port; 0 takes a free one.")
    return CannotListen(host, port, reason, "Name an address of this machine with --host, as 127.0.0.1.")


def server(app: Guard) -> uvicorn.Server:
    """What serves the application, until it is told to stop; requests that run then are finished."""
    _share_heaps()
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",  # the same whatever else is installed: Ray Serve brings uvloop and httptools
            http="h11",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def _share_heaps() -> None:
    """Let this process's threads share two of the C library's heaps, where it is glibc.

    Each thread has one of its own otherwise, eight a processor, and what was once asked for stays in each:
    under load that is some 40 MiB that nobody uses.
    """
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_ARENA_MAX, HEAPS)

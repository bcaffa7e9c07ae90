"""Server-sent events: what happens, as it happens. Who was cut off goes on after the last that they had."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

MEDIA_TYPE = "text/event-stream"
LOOK_SECONDS = 1.0
QUIET_SECONDS = 15.0  # after which a word goes out, so that nothing between takes the connection for dead
LONGEST_SECONDS = 600.0  # then it ends, and who comes again shows again who they are
LAST_EVENT = "The id of the last event that was had."
STREAM = {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "Events as they happen."}


@dataclass(frozen=True)
class Message:
    """One event. id: what to send as Last-Event-ID to go on after it."""

    event: str
    data: Any
    id: str | None = None

    def encode(self) -> bytes:
        """As it goes over the line."""
        head = "" if self.id is None else f"id: {self.id}\n"
        data = json.dumps(self.data, ensure_ascii=False, default=str)
        return f"{head}event: {self.event}\ndata: {data}\n\n".encode(errors="backslashreplace")


Look = Callable[[], tuple[Sequence[Message], bool]]
MOST = 200
_UNDER_WAY: set[Look] = set()


def stream(look: Look) -> StreamingResponse:
    """What look gives, again and again, until it says that it is over. It is called in a thread."""
    if len(_UNDER_WAY) >= MOST:
        raise HTTPException(429, f"{MOST} streams are under way. Ask later.", {"Retry-After": "10"})
    return StreamingResponse(_told(look), media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})


async def _told(look: Look) -> AsyncIterator[bytes]:
    _UNDER_WAY.add(look)
    try:
        async for piece in _pieces(look):
            yield piece
    finally:
        _UNDER_WAY.discard(look)


async def _pieces(look: Look) -> AsyncIterator[bytes]:
    begun = spoke = time.monotonic()
    yield b"retry: 2000\n\n"
    while time.monotonic() - begun < LONGEST_SECONDS:
        messages, over = await run_in_threadpool(look)
        for message in messages:
            yield message.encode()
        if over:
            return
        now = time.monotonic()
        if messages:
            spoke = now
        elif now - spoke > QUIET_SECONDS:
            spoke = now
            yield b": still here\n\n"
        await asyncio.sleep(LOOK_SECONDS)

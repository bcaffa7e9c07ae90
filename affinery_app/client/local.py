"""A workspace on this machine: the same application, called in this process without a server."""

from __future__ import annotations

import asyncio
import getpass
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from starlette.types import Message

from affinery_app.api.access import Who
from affinery_app.api.application import routes
from affinery_app.client.transport import Reply
from affinery_app.wiring import Workspace
from registry.asking import Asker, asked_by

AHEAD = 16  # pieces of an answer that may wait to be read


class Local:
    """An event loop in a thread of its own, in which the application answers."""

    def __init__(self, space: Workspace) -> None:
        self.address = str(space.folder)
        self._app = routes(space)
        self._who = Who(_user(), "admin", "process", "this process")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="affinery client", daemon=True)
        self._thread.start()

    def send(self, method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes] = ()) -> Reply:
        call = _Call(self._loop, iter(body))
        raw_path, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path),
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
            "client": None,
            "server": ("localhost", None),
            "state": {"who": self._who},
        }
        asker = Asker(self._who.name, self._who.via, self._who.address, f"{method} {raw_path}"[:300])
        call.running = asyncio.run_coroutine_threadsafe(self._answer(scope, call, asker), self._loop)
        start = call.next()
        told = {name.decode(): value.decode("latin-1") for name, value in start.get("headers", [])}
        return Reply(start["status"], told, call.pieces(), call.close)

    async def _answer(self, scope: dict[str, Any], call: _Call, asker: Asker) -> None:
        try:
            with asked_by(asker):
                await self._app(scope, call.receive, call.send)
        except Exception as error:  # noqa: BLE001 - whoever called hears of it, in their own thread
            await call.put(error)
        else:
            await call.put(None)

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)


class _Call:
    """One request under way: what is sent of it, and what came back and is not read yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, body: Iterator[bytes]) -> None:
        self.running: Any = None
        self._loop = loop
        self._body = body
        self._back: queue.Queue[Message | Exception | None] = queue.Queue(AHEAD)
        self._left = asyncio.Event()
        self._sent = False

    async def receive(self) -> Message:
        if self._sent:
            await self._left.wait()
            return {"type": "http.disconnect"}
        piece = await self._loop.run_in_executor(None, next, self._body, None)
        self._sent = piece is None
        return {"type": "http.request", "body": piece or b"", "more_body": not self._sent}

    async def send(self, message: Message) -> None:
        if self._left.is_set():
            raise OSError("nobody reads it any more")
        await self.put(message)

    async def put(self, what: Message | Exception | None) -> None:
        while not self._left.is_set():
            try:
                self._back.put_nowait(what)
            except queue.Full:
                await asyncio.sleep(0.001)
            else:
                return

    def next(self) -> Message:
        """The first thing that is said. Raises what the application raised without an answer."""
        found = self._back.get()
        if isinstance(found, Exception):
            raise found
        return found or {"status": 500, "headers": []}

    def pieces(self) -> Iterator[bytes]:
        while (message := self._back.get()) is not None:
            if isinstance(message, Exception):
                return  # it was answered as a problem, before it was raised
            if message.get("body"):
                yield message["body"]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._left.set)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"

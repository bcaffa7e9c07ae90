"""The service: the registry over HTTP, to read only, for teams and for health checks.

    GET /healthz       200 while the registry answers and is of this schema, else 503
    GET /v1/<noun>     backbones, datasets, tasks, adapters, jobs: as `affinery … list --json` prints them

Errors are problem+json (RFC 9457). Nothing can be changed through it, and it has no secrets to give.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqlalchemy.orm import Session

from affinery.errors import AffineryError
from affinery_app.wiring import Workspace
from orchestration import queue
from registry import adapters, backbones, datasets, tasks
from registry.session import check_schema

LISTS: dict[str, Callable[[Session], list[Any]]] = {
    "/v1/backbones": lambda session: [record.to_json() for record in backbones.list_all(session)],
    "/v1/datasets": lambda session: [record.to_json() for record in datasets.list_all(session)],
    "/v1/tasks": lambda session: [record.to_json() for record in tasks.list_all(session)],
    "/v1/adapters": lambda session: [record.to_json() for record in adapters.list_all(session)],
    "/v1/jobs": lambda session: [record.to_json() for record in queue.list_all(session)],
}


def make_server(space: Workspace, host: str, port: int) -> ThreadingHTTPServer:
    """A server, bound and not yet serving; port 0 takes a free one. Raises OSError where it cannot bind."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            try:
                if path == "/healthz":
                    check_schema(space.sessions.engine)
                    self._answer(200, {"status": "ok"})
                elif path in LISTS:
                    with space.sessions.read() as session:
                        self._answer(200, LISTS[path](session))
                else:
                    detail = f"There is nothing here. There is: /healthz, {', '.join(LISTS)}"
                    self._problem(404, "Not found", detail)
            except AffineryError as error:
                self._problem(503, "The registry cannot be read", str(error))

        def _problem(self, status: int, title: str, detail: str) -> None:
            problem = {"type": "about:blank", "status": status, "title": title, "detail": detail}
            self._answer(status, problem, "application/problem+json")

        def _answer(self, status: int, value: Any, kind: str = "application/json") -> None:
            body = json.dumps(value, ensure_ascii=False, default=str).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)

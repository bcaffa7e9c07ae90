"""The client: what carries requests, says what was refused, tries again where that is safe, and the verbs."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from affinery_app.client import labels, nouns
from affinery_app.client.errors import (
    NOT_KNOWN,
    NoWorkspace,
    ServiceRefused,
    ServiceUnreachable,
    WorksElsewhere,
)
from affinery_app.client.transport import Reply, Transport

TRIES = 5
LATER = (429, 503)
LONGEST_WAIT_SECONDS = 30.0
Json = dict[str, Any]


class Client:
    """A workspace on this machine (its folder), or a service elsewhere (its address): the same verbs.

    client = affinery.Client("my-workspace")
    client = affinery.Client.init("my-workspace")                   # made where there is none
    client = affinery.Client("https://affinery.lab", token="aff_…")
    """

    @classmethod
    def init(cls, folder: str | Path) -> Self:
        """The same, after a workspace is made there, or brought up to date, as `affinery init` does."""
        from affinery_app.wiring import create_workspace

        return cls(create_workspace(Path(folder))[0].folder)

    def __init__(self, where: str | Path, token: str | None = None) -> None:
        """Raises NoWorkspace for a folder that is none."""
        self._transport, self._space = _opened(where, token)
        self.backbones = nouns.Backbones(self)
        self.datasets = nouns.Datasets(self)
        self.tasks = nouns.Tasks(self)
        self.jobs = nouns.Jobs(self)
        self.schedules = nouns.Schedules(self)
        self.limits = nouns.Limits(self)
        self.adapters = nouns.Adapters(self)
        self.aliases = nouns.Aliases(self)
        self.compositions = nouns.Compositions(self)
        self.exports = nouns.Exports(self)
        self.evaluations = nouns.Evaluations(self)
        self.tags = labels.Tags(self)
        self.notes = labels.Notes(self)
        self.names = labels.Names(self)
        self.events = nouns.Events(self)
        self.tokens = nouns.Tokens(self)
        self.webhooks = nouns.Webhooks(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the workspace or the service."""
        self._transport.close()
        if self._space is not None:
            self._space.sessions.engine.dispose()

    def run(self) -> int:
        """Do all that is scheduled in this workspace, here, until nothing waits. → how many jobs ended

        Raises WorksElsewhere for a service, whose workers do it.
        """
        if self._space is None:
            raise WorksElsewhere(self._transport.address)
        from affinery_app.cli.progress import Screen
        from orchestration.worker import Worker

        with Screen() as screen:
            return Worker(self._space.services(), screen).drain()

    def search(self, text: str) -> Json:
        """What the text names, what has it in its name, and adapters for which it holds as a filter."""
        found: Json = self.ask("GET", "/v1/search", q=text)
        return found

    def stats(self) -> Json:
        """How many things and jobs there are."""
        found: Json = self.ask("GET", "/v1/stats")
        return found

    def lineage(self, ref: str, direction: str = "up", depth: int = 3) -> Json:
        """What something was made from (up) or went into (down), as a bounded graph."""
        found: Json = self.ask("GET", path("/v1/lineage", ref), direction=direction, depth=depth)
        return found

    def diff(self, left: str, right: str, tensors: bool = True) -> Json:
        """What differs between two adapters or compositions. tensors: whether those are compared too."""
        found: Json = self.ask("GET", "/v1/diff", left=left, right=right, tensors=tensors)
        return found

    def ask(
        self, method: str, place: str, body: Any = None, if_match: str | None = None, **query: Any
    ) -> Any:
        """One request, and its answer. Raises ServiceRefused and ServiceUnreachable."""
        return self.reply(method, place, body, if_match, **query).json()

    def reply(
        self,
        method: str,
        place: str,
        body: Any = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **query: Any,
    ) -> Reply:
        """The same, with the answer's headers."""
        conditions = {"If-Match": if_match, "If-None-Match": if_none_match}
        sent = {name: value for name, value in conditions.items() if value is not None}
        content = b""
        if body is not None:
            content = json.dumps(body).encode()
            sent |= {"Content-Type": "application/json"}
        if method in ("POST", "PUT", "PATCH"):
            sent |= {"Content-Length": str(len(content))}
        if method == "POST":
            sent["Idempotency-Key"] = uuid.uuid4().hex  # sent again, it is done once
        return self.send(method, place + _query(query), sent, [content] if content else [])

    def pages(self, place: str, after: int = 0, **query: Any) -> Iterator[Json]:
        """Everything of a list, page by page. after: where to go on, as `next` of a page says."""
        while True:
            page = self.ask("GET", place, **query, after=after)
            yield from page["items"]
            if page["next"] is None:
                return
            after = page["next"]

    def send(
        self,
        method: str,
        place: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] = (),
        tries: int = TRIES,
    ) -> Reply:
        """An answer that is good. A service that is busy, or away for a moment, is asked again."""
        pieces = list(body) if tries > 1 else body
        for left in reversed(range(tries)):
            try:
                reply = self._transport.send(method, place, headers, pieces)
            except ServiceUnreachable:
                if not left or tries == TRIES == left + 1:  # never once reached: say so at once
                    raise
                time.sleep(1.0)
                continue
            if reply.status < 400:
                return reply
            if left and reply.status in LATER and "retry-after" in reply.headers:
                reply.close()
                time.sleep(min(float(reply.headers["retry-after"]), LONGEST_WAIT_SECONDS))
                continue
            raise _refused(reply)
        raise AssertionError("unreachable")


def path(*parts: str) -> str:
    """A place, its parts after the first made fit to stand in an address."""
    return "/".join([parts[0], *(quote(part, safe="@:") for part in parts[1:])])


def _opened(where: str | Path, token: str | None) -> tuple[Transport, Any]:
    if isinstance(where, str) and where.partition("://")[0] in ("http", "https") and "://" in where:
        from affinery_app.client.remote import Remote

        return Remote(where, token), None
    from affinery_app import wiring
    from affinery_app.client.local import Local
    from affinery_app.errors import WorkspaceMissing

    try:
        space = wiring.open_workspace(Path(where))
    except WorkspaceMissing as error:
        raise NoWorkspace(*error.args) from error
    return Local(space), space


def _query(given: Mapping[str, Any]) -> str:
    wanted = {name: value for name, value in given.items() if value not in (None, "", [], ())}
    return f"?{urlencode(wanted, doseq=True)}" if wanted else ""


def _refused(reply: Reply) -> ServiceRefused:
    content = reply.read()
    try:
        said = json.loads(content)
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    title = str(said.get("title") or f"HTTP {reply.status}")
    detail = str(said.get("detail") or content[:300].decode(errors="replace"))
    if "www-authenticate" in reply.headers:
        detail = NOT_KNOWN
    return ServiceRefused(reply.status, title, detail, str(said.get("type") or "about:blank"))

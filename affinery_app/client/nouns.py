"""The verbs of each noun. Answers are the service's own: docs/guides/http-api.md and /openapi.json."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery.errors import ConfigInvalid, PlaceInvalid
from affinery_app.client import files
from affinery_app.client.errors import JobNotDone, StillRunning

if TYPE_CHECKING:
    from affinery_app.client.client import Client

Json = dict[str, Any]
OVER = ("done", "dead", "cancelled")
LOOK_SECONDS = 1.0


class Place:
    """What is asked of one place of the service. PLACE: where it is."""

    PLACE = ""

    def __init__(self, client: Client) -> None:
        self._client = client

    def _ask(self, method: str, *parts: str, body: Any = None, **query: Any) -> Json:
        from affinery_app.client.client import path

        found: Json = self._client.ask(method, path(self.PLACE, *parts), body, **query)
        return found

    def _standing(self, method: str, *parts: str, body: Any = None, **conditions: str | None) -> Json:
        """The same, with the ETag of what is told as `etag`. conditions: if_match, if_none_match."""
        from affinery_app.client.client import path

        reply = self._client.reply(method, path(self.PLACE, *parts), body, **conditions)
        found: Json = reply.json()
        return found | {"etag": reply.headers["etag"]}


class Listed(Place):
    """What can be listed."""

    def list(self, **query: Any) -> Iterator[Json]:
        """All of them, page by page."""
        return self._client.pages(self.PLACE, **query)


class Noun(Listed):
    """What can be listed and read one by one."""

    def get(self, ref: str) -> Json:
        """One of them."""
        return self._ask("GET", ref)


class Backbones(Noun):
    PLACE = "/v1/backbones"

    def add(
        self,
        name: str,
        file: str | Path,
        parent: str | None = None,
        *,
        on_sent: files.OnSent | None = None,
    ) -> Json:
        """Register a backbone file, or an official checkpoint as safetensors.

        on_sent: is told how many bytes were sent, and of how many.
        """
        sent = files.upload(self._client, Path(file), on_sent)
        return self._ask("POST", body={"name": name, "parent": parent, **sent})


class Datasets(Noun):
    PLACE = "/v1/datasets"

    def add(
        self, name: str, images: str | Path, /, *, on_sent: files.OnSent | None = None, **options: Any
    ) -> Json:
        """Register a folder of images, an archive of one, or a Parquet file.

        options: licence, source (where they come from, in words), split …. on_sent: is told how many bytes
        were sent, and of how many.
        """
        with files.as_file(Path(images)) as file:
            sent = files.upload(self._client, file, on_sent)
        return self._ask("POST", body={"name": name, **sent, **options})

    def adopt(self, name: str, md5: str, remote: str | None = None, **options: Any) -> Json:
        """Register what a DVC remote of the service already has, by the MD5 that a .dvc file pins."""
        return self._ask("POST", body={"name": name, "dvc": {"md5": md5, "remote": remote}, **options})


class Tasks(Noun):
    PLACE = "/v1/tasks"

    def add(
        self,
        *names: str,
        backbone: str,
        dataset: str | None = None,
        kind: str = "affiner",
        config: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
        **terms: Any,
    ) -> Json:
        """Register tasks and schedule their training, together in one job. → that job

        dataset: the one of each task's name where none is given. recipe: steps, batch …. terms: after,
        priority, run_at, strategy ….
        """
        asked = self._asked(names, backbone, dataset, kind, config, recipe, terms)
        found: Json = self._ask("POST", body=asked)["jobs"][0]
        return found

    def estimate(self, *names: str, backbone: str, **asked: Any) -> Json:
        """What `add` would cost; nothing is kept."""
        given = {name: asked.pop(name, None) for name in ("dataset", "config", "recipe")}
        kind = asked.pop("kind", "affiner")
        body = self._asked(names, backbone, given["dataset"], kind, given["config"], given["recipe"], asked)
        return self._ask("POST", "estimate", body=body)

    def versions(self, name: str) -> Iterator[Json]:
        """The adapter versions of a task, the newest first."""
        from affinery_app.client.client import path

        return self._client.pages(path(self.PLACE, name, "versions"))

    def report(self, name: str, to: str | Path) -> Path:
        """Fetch what is known of a task as one HTML file, in place of one that is there. → it"""
        from affinery_app.client.client import path

        target = Path(to).absolute()
        if target.is_dir():
            raise PlaceInvalid("the place", str(target), "is a folder; name the HTML file to write", "")
        record = self.get(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.download(self._client, path(self.PLACE, record["name"], "report"), target)
        return target

    def _asked(
        self,
        names: Sequence[str],
        backbone: str,
        dataset: str | None,
        kind: str,
        config: Mapping[str, Any] | None,
        recipe: Mapping[str, Any] | None,
        terms: Mapping[str, Any],
    ) -> Json:
        planned = [{"name": name, "dataset": dataset} for name in names]
        how = {"kind": kind, "config": dict(config or {}), "recipe": dict(recipe or {})}
        return {"tasks": planned, "backbone": backbone, **how, **terms}


class Jobs(Noun):
    """A job comes with its `etag`: a change with `if_match=job["etag"]` is done only to what was read.

    Where it moved meanwhile, the change raises ServiceRefused (412).
    """

    PLACE = "/v1/jobs"

    def get(self, ref: str | int) -> Json:
        """One of them."""
        return self._standing("GET", str(ref))

    def add(self, kind: str, **asked: Any) -> Json:
        """Schedule a job: train (again), evaluate, retention, export, rebase or verify."""
        return self._standing("POST", body={"kind": kind, **asked})

    def attempts(self, job: str | int) -> list[Json]:
        """Every try of a job."""
        found: list[Json] = self._ask("GET", str(job), "attempts")["items"]
        return found

    def log(self, job: str | int, attempt: int | None = None) -> str:
        """What an attempt wrote, the last where none is named."""
        return str(self._ask("GET", str(job), "log", attempt=attempt)["log"])

    def cancel(self, job: str | int, if_match: str | None = None) -> Json:
        """End it."""
        return self._standing("POST", str(job), "cancel", if_match=if_match)

    def pause(self, job: str | int, if_match: str | None = None) -> Json:
        """Hold it back."""
        return self._standing("POST", str(job), "pause", if_match=if_match)

    def resume(self, job: str | int, if_match: str | None = None) -> Json:
        """Let it go on."""
        return self._standing("POST", str(job), "resume", if_match=if_match)

    def retry(self, job: str | int, waiting: bool = False, if_match: str | None = None) -> Json:
        """Take it up again; waiting: and those that are dead because of it."""
        return self._standing("POST", str(job), "retry", body={"waiting": waiting}, if_match=if_match)

    def prioritise(self, job: str | int, priority: int, if_match: str | None = None) -> Json:
        """Move it in the queue."""
        return self._standing("POST", str(job), "priority", body={"priority": priority}, if_match=if_match)

    def follow(self, job: str | int) -> Iterator[tuple[str, Json]]:
        """What happens to it, as it happens: ("state" | "loss" | "end", …). Cut off, it goes on."""
        from affinery_app.client.client import path

        last: dict[str, str] = {}
        while True:
            head = {"Accept": "text/event-stream", **last}
            reply = self._client.send("GET", path(self.PLACE, str(job), "events"), head)
            try:
                for name, number, told in _messages(reply.pieces):
                    if number:
                        last = {"Last-Event-ID": number}
                    yield name, told
                    if name == "end":
                        return
            finally:
                reply.close()

    def wait(self, job: str | int, seconds: float | None = None) -> Json:
        """The job when it is done. Raises JobNotDone where it ended otherwise, StillRunning after seconds."""
        begun = time.monotonic()
        while (found := self.get(str(job)))["state"] not in OVER:
            if seconds is not None and time.monotonic() - begun > seconds:
                raise StillRunning(found["number"], found["state"], seconds)
            time.sleep(LOOK_SECONDS)
        if found["state"] != "done":
            raise JobNotDone(found["number"], found["state"], found["error"])
        return found


class Schedules(Noun):
    PLACE = "/v1/schedules"

    def list(self, **query: Any) -> Iterator[Json]:
        """All of them, by name."""
        return iter(self._ask("GET", **query)["items"])

    def add(self, name: str, cron: str, tasks: Sequence[str], **options: Any) -> Json:
        """Train tasks again and again."""
        return self._ask("POST", body={"name": name, "cron": cron, "tasks": [*tasks], **options})

    def pause(self, name: str) -> Json:
        """Fire no more, until it is resumed."""
        return self._ask("POST", name, "pause")

    def resume(self, name: str) -> Json:
        """Go on with the next time after now."""
        return self._ask("POST", name, "resume")

    def remove(self, name: str) -> Json:
        """Train them no more."""
        return self._ask("DELETE", name)


class Limits(Place):
    """A limit's scope and key: backbone tiny-dit, submitter ann, resource gpus; * is each that has no own."""

    PLACE = "/v1/limits"

    def list(self) -> Iterator[Json]:
        """All of them, by scope and key."""
        return iter(self._ask("GET")["items"])

    def get(self, scope: str, key: str) -> Json:
        """One of them."""
        return self._ask("GET", scope, key)

    def set(self, scope: str, key: str, most: float) -> Json:
        """At most so many jobs at once, or so much of a resource. What runs already runs on."""
        return self._ask("PUT", scope, key, body={"most": most})

    def remove(self, scope: str, key: str) -> Json:
        """Take it away."""
        return self._ask("DELETE", scope, key)


class Adapters(Noun):
    PLACE = "/v1/adapters"

    def list(self, filter: str = "", **query: Any) -> Iterator[Json]:  # noqa: A002 - the word that people use
        """The versions for which the filter holds, the newest first."""
        return self._client.pages(self.PLACE, filter=filter, **query)

    def retire(self, ref: str, reason: str) -> Json:
        """Let no new composition take it."""
        return self._ask("POST", ref, "retire", body={"reason": reason})

    def restore(self, ref: str) -> Json:
        """Let it be used again."""
        return self._ask("POST", ref, "restore")


class Aliases(Noun):
    """An alias comes with its `etag`: with `if_match=alias["etag"]` it is moved only from what was read."""

    PLACE = "/v1/aliases"

    def list(self, task: str = "", **query: Any) -> Iterator[Json]:
        """All of them, or those of a task."""
        return iter(self._ask("GET", task=task, **query)["items"])

    def get(self, alias: str) -> Json:
        """What task@alias means."""
        return self._standing("GET", alias)

    def set(self, alias: str, adapter: str, require: Sequence[str] = (), if_match: str | None = "*") -> Json:
        """Point task@alias at a version, whatever it means now; if_match None: if it means nothing yet."""
        body = {"adapter": adapter, "require": [*require]}
        none = "*" if if_match is None else None
        return self._standing("PUT", alias, body=body, if_match=if_match, if_none_match=none)

    def history(self, alias: str) -> Iterator[Json]:
        """Every move of task@alias, the latest first."""
        return iter(self._ask("GET", alias, "history")["items"])

    def remove(self, alias: str, if_match: str = "*") -> Json:
        """Take it away."""
        return self._standing("DELETE", alias, if_match=if_match)


class Compositions(Noun):
    PLACE = "/v1/compositions"

    def add(self, name: str, members: Sequence[str], backbone: str | None = None) -> Json:
        """Adapters on one backbone as one model; each sample names its task."""
        if not members:
            raise ConfigInvalid("members", "a composition has one adapter or more.")
        chosen = backbone or self._client.adapters.get(members[0])["backbone"]
        return self._ask("POST", body={"name": name, "backbone": chosen, "members": [*members]})


class Exports(Noun):
    PLACE = "/v1/exports"

    def start(self, composition: str, format: str = "bundle", **options: Any) -> Json:  # noqa: A002
        """Have a composition written. → the job"""
        return self._client.jobs.add("export", composition=composition, format=format, **options)

    def files(self, ref: str) -> list[Json]:
        """The files of an export."""
        found: list[Json] = self._ask("GET", ref, "files")["items"]
        return found

    def download(self, ref: str, to: str | Path) -> Path:
        """Fetch an export into a folder or file that is not there yet. → it"""
        from affinery_app.client.client import path

        target = Path(to).absolute()
        if target.exists():
            raise PlaceInvalid(
                "the place", str(target), "is taken: something is there already; choose another", ""
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        record = self.get(ref)
        whole = target.with_name(f".{target.name}.download")
        files.download(self._client, path(self.PLACE, record["ref"], "download"), whole)
        inside = self.files(record["ref"])
        try:
            if _is_one_file(whole, inside):
                whole.rename(target)
            else:
                files.unpack(whole, target)
        finally:
            whole.unlink(missing_ok=True)
        return target


class Evaluations(Listed):
    PLACE = "/v1/evaluations"

    def list(self, adapter: str = "", **query: Any) -> Iterator[Json]:
        """Those of an adapter."""
        return iter(self._ask("GET", adapter=adapter, **query)["items"])

    def compare(self, left: str, right: str, protocol: str | None = None) -> Json:
        """The figures of two adapters under one protocol."""
        return self._ask("GET", "compare", left=left, right=right, protocol=protocol)


class Events(Listed):
    PLACE = "/v1/events"


class Tokens(Listed):
    PLACE = "/v1/tokens"

    def list(self, **query: Any) -> Iterator[Json]:
        """All of them, those that are revoked too."""
        return iter(self._ask("GET", **query)["items"])

    def create(
        self, name: str, scope: str = "read", tasks: Sequence[str] | None = None, days: float | None = None
    ) -> Json:
        """A new token, for all tasks where none are named; its text, under `token`, is told this once."""
        listed = None if tasks is None else [*tasks]
        return self._ask("POST", body={"name": name, "scope": scope, "tasks": listed, "days": days})

    def revoke(self, name: str) -> Json:
        """End it at once."""
        return self._ask("DELETE", name)


class Webhooks(Noun):
    PLACE = "/v1/webhooks"

    def list(self, **query: Any) -> Iterator[Json]:
        """All of them, without their secrets."""
        return iter(self._ask("GET", **query)["items"])

    def add(self, name: str, url: str, kinds: Sequence[str] = ()) -> Json:
        """Have this address told of what happens; its `secret` is told this once."""
        return self._ask("POST", body={"name": name, "url": url, "kinds": [*kinds]})

    def test(self, name: str) -> Json:
        """Have it told a webhook.tested."""
        return self._ask("POST", name, "test")

    def deliveries(self, name: str, **query: Any) -> Iterator[Json]:
        """What it was and is to be told, the newest first."""
        from affinery_app.client.client import path

        return self._client.pages(path(self.PLACE, name, "deliveries"), **query)

    def remove(self, name: str) -> Json:
        """Forget it."""
        return self._ask("DELETE", name)


def _is_one_file(whole: Path, inside: Sequence[Json]) -> bool:
    """Whether a file came as it is: an archive of it would be larger."""
    return len(inside) == 1 and whole.stat().st_size == inside[0]["size_bytes"]


def _messages(pieces: Iterator[bytes]) -> Iterator[tuple[str, str, Json]]:
    """Server-sent events: → name, id, what is told."""
    held = b""
    for piece in pieces:
        held += piece
        while b"\n\n" in held:
            block, _, held = held.partition(b"\n\n")
            lines = [line.partition(": ") for line in block.decode(errors="replace").splitlines()]
            said = {name: value for name, _, value in lines}
            if "data" in said:
                yield said.get("event", "message"), said.get("id", ""), json.loads(said["data"])

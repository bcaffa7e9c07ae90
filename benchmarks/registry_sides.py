"""The two sides of `registry`: the same questions to Affinery's and to MLflow's, in Python and over HTTP.

Every answer comes as the same plain facts, so that what is timed can be compared.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from benchmarks.filling import RESULTS, Size, Version, adapter_content, mlflow_tags
from registry import adapters, backbones, blobs, certificates, search, tags, tasks
from registry.records import AdapterRecord
from registry.session import Sessions, connect, sessions
from registry.storage.local import LocalStore

PAGE = 50
Facts = tuple[str, int, str, str | None, dict[str, str], dict[str, Any]]


class Side(Protocol):
    """What is asked of either. Every answer is of name, version, digest, run, tags and metrics."""

    def get(self, wanted: Version) -> Facts: ...

    def by_tag(self, key: str, value: str) -> list[Facts]: ...

    def by_run(self, run_id: str) -> list[Facts]: ...

    def deepest(self) -> list[Facts]: ...

    def create(self, new: Version) -> Facts: ...


def _ours(
    name: str, version: int, digest: str, run: str | None, labels: Mapping[str, str], metrics: Any
) -> Facts:
    return name, version, digest, run, dict(labels), metrics


def _theirs(name: str, version: Any, run: str | None, labels: Mapping[str, str]) -> Facts:
    kept = dict(labels)
    return (
        name,
        int(version),
        kept.pop("digest"),
        run,
        {k: v for k, v in kept.items() if k != "metrics"},
        json.loads(kept["metrics"]),
    )


class Affinery:
    """Affinery's registry through its Python functions."""

    def __init__(self, url: str, size: Size) -> None:
        self.sessions = sessions(connect(url))
        self.oldest_page = _before_the_last(self.sessions, size)

    def get(self, wanted: Version) -> Facts:
        with self.sessions.read() as session:
            record = adapters.get(session, f"{wanted.task}@{wanted.version}")
            return _facts(record, tags.of(session, record.node_id))

    def by_tag(self, key: str, value: str) -> list[Facts]:
        return self._search(f"tag.{key}={value}")

    def by_run(self, run_id: str) -> list[Facts]:
        return self._search(f"run={run_id}")

    def deepest(self) -> list[Facts]:
        return self._search("", self.oldest_page)

    def _search(self, text: str, before: int | None = None) -> list[Facts]:
        with self.sessions.read() as session:
            found = search.search(session, text, before=before, limit=PAGE).adapters
            labels = tags.of_each(session, [record.node_id for record in found])
            return [_facts(record, labels.get(record.node_id, {})) for record in found]

    def create(self, new: Version) -> Facts:
        with self.sessions.begin() as session:
            blobs.commit(session, new.digest, 1000)
            record = adapters.bring_in(
                session,
                task=f"task:{new.task}",
                blob_digest=new.digest,
                parameters=12,
                provenance=RESULTS,
                mlflow_run_id=new.run_id,
                metrics=new.metrics,
            )
            certificates.record(session, stage_adapter=record, results=RESULTS, level="unverified")
            return _facts(record, tags.put(session, record, new.tags))


def _facts(record: AdapterRecord, labels: Mapping[str, str]) -> Facts:
    return _ours(record.task, record.version, record.digest, record.mlflow_run_id, labels, record.metrics)


def _before_the_last(ledger: Sessions, size: Size) -> int:
    """Where the page of the oldest begins."""
    with ledger.read() as session:
        page = search.search(
            session, f"version=1 and task={Version.at(min(PAGE, size.tasks - 1), size).task}"
        )
        return page.adapters[0].node_id


class MLflow:
    """MLflow's registry through MlflowClient."""

    def __init__(self, uri: str, size: Size) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.token = _token(size.total - min(PAGE, size.tasks - 1))

    def get(self, wanted: Version) -> Facts:
        return self._facts(self.client.get_model_version(wanted.task, str(wanted.version)))

    def by_tag(self, key: str, value: str) -> list[Facts]:
        return self._search(f"tags.{key} = '{value}'")

    def by_run(self, run_id: str) -> list[Facts]:
        return self._search(f"run_id = '{run_id}'")

    def deepest(self) -> list[Facts]:
        return self._search("", self.token)

    def _search(self, text: str, token: str | None = None) -> list[Facts]:
        found = self.client.search_model_versions(text, max_results=PAGE, page_token=token)
        return [self._facts(each) for each in found]

    def create(self, new: Version) -> Facts:
        made = self.client.create_model_version(
            new.task, f"s3://models/{new.digest}", new.run_id, mlflow_tags(new), await_creation_for=0
        )
        return self._facts(made)

    @staticmethod
    def _facts(found: Any) -> Facts:
        return _theirs(found.name, found.version, found.run_id, found.tags)


def _token(offset: int) -> str:
    """MLflow's page token."""
    return base64.b64encode(json.dumps({"offset": offset}).encode()).decode()


# --- over HTTP -------------------------------------------------------------------------------------


class Http:
    """One connection that is kept open, the same client for both sides."""

    def __init__(self, address: str) -> None:
        self.connection = HTTPConnection(address, timeout=120)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, sent, {"Content-Type": "application/json"} if sent else {})
        got = self.connection.getresponse()
        content = got.read()
        if got.status >= 300:
            raise RuntimeError(f"{method} {path}: {got.status} {content[:500]!r}")
        return json.loads(content)


class AffineryHttp:
    """`affinery serve`. Before a version is created its file is put into the store, which is not timed."""

    def __init__(self, address: str, url: str, folder: Path, oldest_page: int | None) -> None:
        self.http = Http(address)
        self.sessions = sessions(connect(url))
        self.store = LocalStore(folder / "blobs")
        self.oldest_page = oldest_page
        self.files: dict[int, str] = {}

    def get(self, wanted: Version) -> Facts:
        return self._facts(self.http.ask("GET", f"/v1/adapters/{wanted.task}@{wanted.version}"))

    def by_tag(self, key: str, value: str) -> list[Facts]:
        return self._search(f"tag.{key}={value}")

    def by_run(self, run_id: str) -> list[Facts]:
        return self._search(f"run={run_id}")

    def deepest(self) -> list[Facts]:
        return self._search("", self.oldest_page)

    def _search(self, text: str, after: int | None = None) -> list[Facts]:
        path = f"/v1/adapters?limit={PAGE}&filter={quote(text)}&after={after or 0}"
        return [self._facts(each) for each in self.http.ask("GET", path)["items"]]

    def put(self, new: Version) -> None:
        with self.sessions.begin() as session:
            task = tasks.get(session, new.task)
            base = backbones.by_id(session, task.backbone_id)
            content = adapter_content(task, base, float(new.place))
            self.files[new.place] = hashlib.sha256(content).hexdigest()
            blobs.commit(session, self.store.put_bytes(content), len(content))

    def create(self, new: Version) -> Facts:
        body = {
            "task": new.task,
            "blob": self.files[new.place],
            "metrics": new.metrics,
            "mlflow_run_id": new.run_id,
            "tags": new.tags,
        }
        name, version, _, *rest = self._facts(self.http.ask("POST", "/v1/adapters", body))
        return name, version, new.digest, *rest  # type: ignore[return-value]

    @staticmethod
    def _facts(found: Any) -> Facts:
        run, labels = found["mlflow_run_id"], found["tags"]
        return _ours(found["name"], found["version"], found["digest"], run, labels, found["metrics"])


class MLflowHttp:
    """`mlflow server`."""

    def __init__(self, address: str, size: Size) -> None:
        self.http = Http(address)
        self.token = _token(size.total - min(PAGE, size.tasks - 1))

    def get(self, wanted: Version) -> Facts:
        path = f"/api/2.0/mlflow/model-versions/get?name={wanted.task}&version={wanted.version}"
        return self._facts(self.http.ask("GET", path)["model_version"])

    def by_tag(self, key: str, value: str) -> list[Facts]:
        return self._search(f"tags.{key} = '{value}'")

    def by_run(self, run_id: str) -> list[Facts]:
        return self._search(f"run_id = '{run_id}'")

    def deepest(self) -> list[Facts]:
        return self._search("", self.token)

    def _search(self, text: str, token: str = "") -> list[Facts]:
        path = f"/api/2.0/mlflow/model-versions/search?max_results={PAGE}&filter={quote(text)}"
        path += f"&page_token={quote(token)}" if token else ""
        return [self._facts(each) for each in self.http.ask("GET", path).get("model_versions", [])]

    def create(self, new: Version) -> Facts:
        labels = [{"key": key, "value": value} for key, value in mlflow_tags(new).items()]
        body = {"name": new.task, "source": f"s3://models/{new.digest}", "tags": labels}
        made = self.http.ask("POST", "/api/2.0/mlflow/model-versions/create", body | {"run_id": new.run_id})
        return self._facts(made["model_version"])

    @staticmethod
    def _facts(found: Any) -> Facts:
        labels = {each["key"]: each["value"] for each in found["tags"]}
        return _theirs(found["name"], found["version"], found.get("run_id"), labels)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, health: str, log: Path, **environment: str) -> Iterator[str]:
    """A server of one worker, once it answers. → its address"""
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=said,
            stderr=said,
            env=os.environ | environment,
            start_new_session=True,
        )
        try:
            _wait(process, port, health, log)
            yield f"127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, health: str, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", health)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")

"""MLflow, reached through a spool: what is to be recorded is on our own disk first, then replayed in order.

A training never waits for MLflow and never fails with it. While the server is away its runs grow in the
spool, and the next flush sends what is missing, with the times and steps of when it happened. Replaying an
operation again changes nothing: metrics with the same step and time are one point, parameters and tags are
the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from affinery import tensor_files

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

OPERATIONS, STATE, REFUSED = "operations.jsonl", "state.json", "refused.jsonl"
REFUSALS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
"""Not BAD_REQUEST: so MLflow also names a database that is damaged for a while."""
WRITING, REPLAYING = ".writing", ".replaying"
KEY_TAG = "affinery.key"
BATCH = 500
AGAIN_SECONDS = 15.0
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
Point = tuple[str, float, int, int]
"""name, value, step, milliseconds since 1970."""


def open_tracking(uri: str, artifacts: Path, spool: Path) -> Tracking:
    """MLflow at a URI. artifacts: where its files go when it keeps its tables in a local database."""
    return Tracking(uri, artifacts, spool)


@dataclass
class _Run:
    """One run's place in the spool: the MLflow run that it became, and how much of it was replayed."""

    folder: Path
    run_id: str | None = None
    offset: int = 0

    def save(self) -> None:
        tensor_files.write_whole(
            self.folder / STATE, json.dumps({"run_id": self.run_id, "offset": self.offset}).encode()
        )

    def set_aside(self, raw: bytes, reason: str) -> None:
        """Keeps what can never be replayed beside the spool, with the reason, so that the rest goes on."""
        entry = {"reason": reason, "operations": raw.decode("utf-8", "replace")}
        with (self.folder / REFUSED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


class Tracking:
    """Runs in MLflow, by a key of our own that exists before MLflow knows of the run."""

    def __init__(self, uri: str, artifacts: Path, spool: Path) -> None:
        self.uri, self.artifacts, self.spool = uri, artifacts, spool
        self.last_error: str | None = None
        self._client: MlflowClient | None = None
        self._not_before = 0.0
        self._last_flush = 0.0

    def prepare(self) -> None:
        """Makes a local store's tables now; a server's are there already. Raises what MLflow raises."""
        if self.uri.startswith("sqlite:"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._connected().search_experiments(max_results=1)

    # --- what happens during a training: only our own disk is touched --------------------------------------

    def start_run(
        self, experiment: str, run_name: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> str:
        """Begins a run. → its key"""
        key = uuid.uuid4().hex
        self._append(key, {"op": "create", "experiment": experiment, "name": run_name, "time": _now()})
        self._append(key, {"op": "params", "values": {name: str(value) for name, value in params.items()}})
        self.set_tags(key, tags)
        return key

    def log_metrics(self, key: str, points: Sequence[Point]) -> None:
        self._append(key, {"op": "metrics", "points": [list(point) for point in points]})
        if time.monotonic() - self._last_flush > AGAIN_SECONDS:
            self.flush(key)

    def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        self._append(key, {"op": "tags", "values": dict(tags)})

    def log_artifact(self, key: str, path: Path, to: str) -> None:
        """The file must stay where it is until the run was replayed."""
        self._append(key, {"op": "artifact", "path": str(path), "to": to})

    def finish(self, key: str, status: str = "FINISHED") -> None:
        """Ends a run and tries to bring MLflow up to date at once."""
        self._append(key, {"op": "finish", "status": status, "time": _now()})
        self._not_before = 0.0
        self.flush(key)

    def _append(self, key: str, operation: Mapping[str, Any]) -> None:
        folder = self.spool / key
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / WRITING), (folder / OPERATIONS).open("ab+") as file:
            _drop_torn_line(file)
            file.write(json.dumps(operation, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    # --- bringing MLflow up to date ------------------------------------------------------------------------

    def run_id(self, key: str) -> str | None:
        """The MLflow run that a key became, or None while MLflow has not heard of it."""
        return self._read(key).run_id

    def flush(self, key: str | None = None) -> bool:
        """Replays what MLflow lacks, of one run or all. → whether nothing is missing now"""
        self._last_flush = time.monotonic()
        if self._last_flush < self._not_before:
            return False
        keys = (
            [key]
            if key is not None
            else sorted(path.parent.name for path in self.spool.glob(f"*/{OPERATIONS}"))
        )
        errors: list[str] = []
        for each in keys:
            try:
                self._replay(each)
            except Exception as error:  # noqa: BLE001 - whatever MLflow or the network raise, the spool stays
                errors.append(f"{type(error).__name__}: {error}")
                if not _refused(error):
                    self._not_before = time.monotonic() + AGAIN_SECONDS
                    break
        self.last_error = errors[-1] if errors else None
        return not errors

    def pending(self) -> int:
        """How many runs hold something that MLflow has not got yet."""
        return sum(
            self._read(path.parent.name).offset < path.stat().st_size
            for path in self.spool.glob(f"*/{OPERATIONS}")
        )

    def _read(self, key: str) -> _Run:
        folder = self.spool / key
        try:
            state = json.loads((folder / STATE).read_bytes())
            return _Run(folder, state["run_id"], int(state["offset"]))
        except (OSError, ValueError, KeyError):
            return _Run(folder)

    def _replay(self, key: str) -> None:
        """One process at a time: two that both found no run in MLflow would make two."""
        with _alone(self.spool / key / REPLAYING):
            self._replay_alone(key)

    def _replay_alone(self, key: str) -> None:
        run = self._read(key)
        with (run.folder / OPERATIONS).open("rb") as file:
            file.seek(run.offset)
            fresh = file.read()
        # A torn last line waits for its end.
        lines = fresh[: fresh.rfind(b"\n") + 1].splitlines(keepends=True)
        at = 0
        while at < len(lines):
            operation, taken = _next_operation(lines, at)
            raw = b"".join(lines[at : at + taken])
            if operation is None:
                run.set_aside(raw, "it was cut off when it was written")
            else:
                try:
                    self._apply(run, key, operation)
                except Exception as error:
                    # What MLflow refuses it refuses for ever; anything else is tried again.
                    if not _refused(error) or operation["op"] == "create":
                        raise
                    run.set_aside(raw, str(error))
            run.offset += len(raw)
            run.save()
            at += taken

    def _apply(self, run: _Run, key: str, operation: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client = self._connected()
        if operation["op"] == "create":
            run.run_id = self._created(client, key, operation)
            return
        assert run.run_id is not None
        match operation["op"]:
            case "params":
                params = [Param(name, value[:6000]) for name, value in operation["values"].items()]
                client.log_batch(run.run_id, params=params)
            case "tags":
                client.log_batch(
                    run.run_id, tags=[RunTag(n, v[:5000]) for n, v in operation["values"].items()]
                )
            case "metrics":
                metrics = [Metric(name, value, at, step) for name, value, step, at in operation["points"]]
                client.log_batch(run.run_id, metrics=metrics)
            case "artifact":
                if Path(operation["path"]).exists():
                    client.log_artifact(run.run_id, operation["path"], operation["to"])
                else:
                    client.set_tag(run.run_id, "affinery.missing_artifact", operation["path"])
            case "finish":
                client.set_terminated(run.run_id, operation["status"], operation["time"])
            case unknown:
                raise ValueError(f"The spool of run {key} holds an unknown operation {unknown!r}")

    def _created(self, client: MlflowClient, key: str, operation: dict[str, Any]) -> str:
        """The run of a key: found by its tag where an earlier replay was cut off right after making it."""
        name = operation["experiment"]
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            local = self.artifacts.absolute().as_uri() if self.uri.startswith("sqlite:") else None
            experiment_id = client.create_experiment(name, artifact_location=local)
        else:
            experiment_id = experiment.experiment_id
        known = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if known:
            return str(known[0].info.run_id)
        tags = {KEY_TAG: key, "mlflow.source.name": "affinery"}
        made = client.create_run(experiment_id, operation["time"], tags=tags, run_name=operation["name"])
        return str(made.info.run_id)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            import logging

            from mlflow.tracking import MlflowClient

            for noisy in ("mlflow", "alembic", "mlflow.store.db.utils"):
                logging.getLogger(noisy).setLevel(logging.ERROR)
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds a lock that ends with this process, whatever becomes of it."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _drop_torn_line(file: BinaryIO) -> None:
    """A line without its end is of a process that died in the middle of it; nothing was promised of it."""
    end = file.seek(0, os.SEEK_END)
    start = end
    while start and (file.seek(start - 1), file.read(1))[1] != b"\n":
        start -= 1
    if start < end:
        file.truncate(start)


def _refused(error: Exception) -> bool:
    """Whether MLflow answered, and will answer so for ever; other runs may still be replayed."""
    return getattr(error, "error_code", None) in REFUSALS


def _next_operation(lines: Sequence[bytes], at: int) -> tuple[dict[str, Any] | None, int]:
    """The operation at a line, with the metrics of the lines after it. → it (or None), its lines"""
    operation = _parsed(lines[at])
    if operation is None or operation["op"] != "metrics":
        return operation, 1
    points, taken = list(operation["points"]), 1
    while at + taken < len(lines) and len(points) < BATCH:
        following = _parsed(lines[at + taken])
        if following is None or following["op"] != "metrics":
            break
        points += following["points"]
        taken += 1
    return {"op": "metrics", "points": points}, taken


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "op" in found else None


def _now() -> int:
    return int(time.time() * 1000)

"""Runs in MLflow, by a key of our own that exists before MLflow knows of the run.

A training never waits for MLflow and never fails with it. While the server is away its runs grow in the
spool, and the next flush sends what is missing, with the times and steps of when it happened. Replaying an
operation again changes nothing: metrics with the same step and time are one point, parameters and tags are
the same.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery import tensor_files
from orchestration.tracking import replay
from orchestration.tracking.spool import REPLAYING, Replayed, Spool, alone

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

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


class Tracking:
    """What is told to MLflow, and how much of it has arrived."""

    def __init__(self, uri: str, artifacts: Path, spool: Path) -> None:
        self.uri, self.artifacts, self.spool = uri, artifacts, spool
        self.kept = Spool(spool)
        self.last_error: str | None = None
        self._client: MlflowClient | None = None
        self._not_before = 0.0
        self._last_flush = 0.0
        self._flushing: threading.Thread | None = None

    def prepare(self) -> None:
        """Makes a local store's tables now; a server's are there already. Raises what MLflow raises."""
        if self.uri.startswith("sqlite:"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.client().search_experiments(max_results=1)

    @property
    def trouble(self) -> str | None:
        """Why something is not safe on disk yet; None where all is."""
        return self.kept.trouble

    # --- what happens during a training: only our own disk is touched --------------------------------------

    def start_run(
        self,
        experiment: str,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        *,
        key: str | None = None,
        parent: str | None = None,
    ) -> str:
        """Begins a run. → its key

        key: one of the caller's; the same key again goes on with the same run. parent: the key of the run
        that this one is shown under.
        """
        key = key or uuid.uuid4().hex
        if not self.kept.knows(key):
            begun = {"op": "create", "experiment": experiment, "name": run_name, "time": _now()}
            self.kept.append(key, begun | ({"parent": parent} if parent else {}))
        self.kept.append(
            key, {"op": "params", "values": {name: str(value) for name, value in params.items()}}
        )
        self.set_tags(key, tags)
        return key

    def log_metrics(self, key: str, points: Sequence[Point]) -> None:
        self.kept.append(key, {"op": "metrics", "points": [list(point) for point in points]})
        self._flush_beside(key)

    def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        self.kept.append(key, {"op": "tags", "values": dict(tags)})

    def log_artifact(self, key: str, path: Path, to: str) -> None:
        """The file is copied: what becomes of it afterwards is of no matter."""
        digest = tensor_files.sha256_file(path) if path.is_file() else ""
        kept = self.kept.keep(key, path)
        told = {"path": kept, "from": str(path), "sha256": digest, "to": to}
        self.kept.append(key, {"op": "artifact", **told})

    def log_text(self, key: str, text: str, file: str) -> None:
        """A small file of text. file: its path among the run's artifacts."""
        self.kept.append(key, {"op": "text", "text": text, "file": file})

    def log_dataset(
        self,
        key: str,
        name: str,
        digest: str,
        source: Mapping[str, object],
        profile: Mapping[str, object],
        context: str = "training",
    ) -> None:
        """A dataset that the run was made from."""
        described = {"name": name, "digest": digest, "source": dict(source), "profile": dict(profile)}
        self.kept.append(key, {"op": "dataset", "context": context, **described})

    def register(self, key: str, name: str, path: str, tags: Mapping[str, str]) -> None:
        """A version of the registered model `name`: what lies at a path of the run's artifacts.

        tags: affinery.ref and affinery.digest among them, by which a version is known.
        """
        self.kept.append(key, {"op": "register", "name": name, "path": path, "tags": dict(tags)})

    def log_model(
        self,
        key: str,
        title: str,
        kind: str,
        name: str,
        tags: Mapping[str, str],
        files: Mapping[str, str],
        folder: Path | None = None,
    ) -> None:
        """A logged model made of files of text, and a version of the registered model `name` from it.

        folder: one whose files belong to it too. It is read when MLflow is told, not copied now.
        """
        told = {"title": title, "type": kind, "name": name, "tags": dict(tags), "files": dict(files)}
        self.kept.append(key, {"op": "model", **told, "folder": None if folder is None else str(folder)})

    def finish(self, key: str, status: str = "FINISHED") -> None:
        """Ends a run and tries to bring MLflow up to date at once."""
        self.kept.append(key, {"op": "finish", "status": status, "time": _now()})
        self._not_before = 0.0
        self.flush(key)

    # --- bringing MLflow up to date ------------------------------------------------------------------------

    def run_id(self, key: str) -> str | None:
        """The MLflow run that a key became, or None while MLflow has not heard of it."""
        return self.kept.replayed(key).run_id

    def pending(self) -> int:
        """How many runs hold something that MLflow has not got yet."""
        return len(self.kept.pending())

    def _flush_beside(self, key: str) -> None:
        """A server that does not answer holds up its own thread only."""
        if time.monotonic() - self._last_flush <= AGAIN_SECONDS:
            return
        if self._flushing is None or not self._flushing.is_alive():
            self._last_flush = time.monotonic()
            self._flushing = threading.Thread(target=self.flush, args=(key,), name="mlflow", daemon=True)
            self._flushing.start()

    def flush(self, key: str | None = None) -> bool:
        """Replays what MLflow lacks, of one run or all. → whether nothing is missing now"""
        self._last_flush = time.monotonic()
        if self._last_flush < self._not_before:
            return False
        errors: list[str] = []
        for each in [key] if key is not None else self.kept.pending():
            try:
                self._replay(each)
            except Exception as error:  # noqa: BLE001 - whatever MLflow or the network raise, the spool stays
                errors.append(f"{type(error).__name__}: {error}")
                if not replay.refused(error):
                    self._not_before = time.monotonic() + AGAIN_SECONDS
                    break
        self.last_error = errors[-1] if errors else None
        return not errors

    def flush_all(self) -> bool:
        """The same at once, however lately it was tried; what was under way beside is over by then."""
        if self._flushing is not None:
            self._flushing.join()
        self._not_before = 0.0
        return self.flush()

    def replay_anew(self, key: str) -> None:
        """Has the next flush tell a run from its beginning: MLflow has lost some of it."""
        with alone(self.spool / key / REPLAYING):
            Replayed(self.spool / key).save()
        self._not_before = 0.0

    def _replay(self, key: str) -> None:
        """One process at a time: two that both found no run in MLflow would make two."""
        if not (self.spool / key).is_dir():
            return
        with alone(self.spool / key / REPLAYING):
            replayed = self.kept.replayed(key)
            try:
                self._replay_alone(key, replayed)
            except Exception as error:
                if not replay.gone(error) or replayed.run_id is None or self._has(replayed.run_id):
                    raise
                # MLflow came back with another database: it is told everything again.
                self._replay_alone(key, Replayed(replayed.folder))

    def _has(self, run_id: str) -> bool:
        try:
            self.client().get_run(run_id)
        except Exception as error:
            if replay.gone(error):
                return False
            raise
        return True

    def _replay_alone(self, key: str, run: Replayed) -> None:
        for operation, raw in self.kept.fresh(run):
            if operation is None:
                run.set_aside(raw, "it was cut off when it was written")
            else:
                self._apply(run, key, operation, raw)
            run.offset += len(raw)
            run.save()
            if operation is not None and operation["op"] == "artifact":
                kept = Path(operation["path"])
                if kept.is_relative_to(self.spool):
                    kept.unlink(missing_ok=True)

    def _apply(self, run: Replayed, key: str, operation: dict[str, Any], raw: bytes) -> None:
        if operation["op"] == "create":
            run.run_id = self._created(key, operation)
            return
        if run.run_id is None:
            run.set_aside(raw, "the beginning of its run was never written")
            return
        try:
            replay.tell(self.client(), run.run_id, key, operation)
        except Exception as error:
            # What MLflow refuses it refuses for ever; anything else is tried again.
            if not replay.refused(error):
                raise
            self._apply_in_parts(run, key, operation)

    def _apply_in_parts(self, run: Replayed, key: str, operation: dict[str, Any]) -> None:
        assert run.run_id is not None
        for part in replay.parts(operation):
            try:
                replay.tell(self.client(), run.run_id, key, part)
            except Exception as error:
                if not replay.refused(error):
                    raise
                run.set_aside(repr(part).encode(), str(error))

    def _created(self, key: str, operation: Mapping[str, Any]) -> str:
        client, parent = self.client(), operation.get("parent")
        if parent is not None:
            self._replay(parent)
        experiment = replay.experiment_id(client, operation["experiment"], self.artifact_root())
        above = None if parent is None else self.run_id(parent)
        return replay.create(client, key, operation, experiment, above)

    def artifact_root(self) -> str | None:
        """Where files go, absolute; a server knows its own place."""
        return self.artifacts.absolute().as_uri() if self.uri.startswith("sqlite:") else None

    def client(self) -> MlflowClient:
        if self._client is None:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            import logging

            from mlflow.tracking import MlflowClient

            for noisy in ("mlflow", "alembic", "mlflow.store.db.utils"):
                logging.getLogger(noisy).setLevel(logging.ERROR)
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client


def _now() -> int:
    return int(time.time() * 1000)

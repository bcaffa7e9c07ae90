"""What a driver tells its worker: one JSON object a line, and back into calls of a listener.

    {"event": "started", "resumed_from": 0}
    {"event": "progress", "step": 10, "steps": 800, "losses": {"digits": 0.4}, "time": 1.0e9}
    {"event": "stage", "doing": "proving that nothing older changed"}
    {"event": "published", "adapters": ["digits@1"], "certificate": {"level": "bit-exact", "results": {…}}}
    {"event": "done", "result": {…}}
    {"event": "failed", "error": {…}, "lasting": true}
    {"event": "stopped", "request": "pause"}

An error travels as its class's name and arguments, and becomes itself again only where it is one of ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any

from affinery.errors import AffineryError
from orchestration.certificates import Certificate
from orchestration.errors import AttemptFailed
from orchestration.jobs import JobRecord
from orchestration.ray_train import ProgressLine
from orchestration.services import Listener
from registry import adapters
from registry.records import AdapterRecord
from registry.session import Sessions

OURS = ("affinery.", "registry.", "trainers.", "orchestration.")


class Teller:
    """The driver's end. send: takes one object."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self.send = send

    def started(self, resumed_from: int) -> None:
        self.send({"event": "started", "resumed_from": resumed_from})

    def progress(self, line: ProgressLine) -> None:
        self.send({"event": "progress", **asdict(line)})

    def stage(self, doing: str) -> None:
        self.send({"event": "stage", "doing": doing})

    def published(self, records: Sequence[AdapterRecord], certificate: Certificate) -> None:
        refs = [record.ref for record in records]
        self.send({"event": "published", "adapters": refs, "certificate": asdict(certificate)})

    def done(self, result: Mapping[str, Any]) -> None:
        self.send({"event": "done", "result": dict(result)})

    def failed(self, error: BaseException, *, lasting: bool) -> None:
        self.send({"event": "failed", "error": packed(error), "lasting": lasting})

    def stopped(self, request: str) -> None:
        self.send({"event": "stopped", "request": request})


def told(line: bytes) -> dict[str, Any] | None:
    """One line as an object; None for what a library printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def pass_on(entry: Mapping[str, Any], job: JobRecord, listener: Listener, sessions: Sessions) -> None:
    """One line, as the listener hears it. What ends an attempt is the worker's to tell."""
    match entry["event"]:
        case "started":
            listener.started(job, entry["resumed_from"])
        case "progress":
            listener.progress(job, progress(entry))
        case "stage":
            listener.stage(job, entry["doing"])
        case "published":
            with sessions.read() as session:
                records = [adapters.get(session, ref) for ref in entry["adapters"]]
            listener.published(job, records, Certificate(**entry["certificate"]))
        case "done":
            listener.done(job, entry["result"])
        case _:
            pass


def progress(entry: Mapping[str, Any]) -> ProgressLine:
    return ProgressLine(**{name: value for name, value in entry.items() if name != "event"})


def packed(error: BaseException) -> dict[str, Any]:
    """An error as JSON: its class, its arguments where JSON takes them, its text."""
    kind = type(error)
    try:
        args = json.loads(json.dumps(error.args))
    except (TypeError, ValueError):
        args = None
    text = str(error) or kind.__name__
    return {"type": f"{kind.__module__}:{kind.__name__}", "args": args, "text": text}


def unpacked(found: Mapping[str, Any]) -> Exception:
    """The error again, if it is one of ours and says the same; else AttemptFailed with its text."""
    module, _, name = found["type"].partition(":")
    if module.startswith(OURS) and found["args"] is not None:
        try:
            error = getattr(import_module(module), name)(*found["args"])
        except (ImportError, AttributeError, TypeError, ValueError):
            error = None
        if isinstance(error, AffineryError) and str(error) == found["text"]:
            return error
    return AttemptFailed(found["text"])

"""Newly published adapters of a backbone, and newer ones, which a server takes in without a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable

from affinery.adapters.files import Adapter, read_adapter
from affinery.errors import AffineryError
from affinery.serving.engine import Engine, Stopped
from affinery.serving.versions import Versions
from affinery_app.wiring import Workspace
from orchestration.errors import ExportRefused
from orchestration.exports import refuse_member
from registry import adapters, backbones, tasks
from registry.errors import AllRetired
from registry.records import AdapterRecord


def newcomers(space: Workspace, fingerprint: str, held: Versions) -> list[tuple[Adapter, int]]:
    """What a backbone's tasks have learnt that is newer than what is held of them, with its version.

    What is retired or was not proved stays out, and so does what has the name of a sum.
    """
    found = []
    with space.sessions.read() as session:
        backbone = backbones.get(session, fingerprint)
        for task in tasks.list_all(session, backbone=backbone.ref):
            known = held.of(task.name)
            if not task.latest_version or (known and known[-1].number is None):
                continue
            try:
                record = adapters.get(session, f"adapter:{task.name}")
                refuse_member(session, backbone.ref, record)
            except (AllRetired, ExportRefused):
                continue
            if not known or record.version > (known[-1].number or 0):
                found.append(record)
    for record in found:
        space.store.verify(record.blob_digest)
    return [(_read(space, record), record.version) for record in found]


def _read(space: Workspace, record: AdapterRecord) -> Adapter:
    digest = record.blob_digest
    return read_adapter(space.store.path(digest), digest).named(record.task)


def take_in(space: Workspace, engine: Engine) -> list[str]:
    """Loads what is new between two passes. → which versions"""
    arrived = newcomers(space, engine.model.fingerprint, engine.versions)
    refs = [engine.take(adapter, number).ref for adapter, number in arrived]
    engine.tidy()
    return refs


def follow(
    space: Workspace, engine: Engine, seconds: float, say: Callable[[str], None], over: threading.Event
) -> None:
    """Looks again and again until it is over. A registry that is away for a while is looked at again."""
    while not over.wait(seconds):
        try:
            for name in take_in(space, engine):
                say(f"took in {name}")
        except Stopped:
            return
        except AffineryError as error:
            say(f"note: {error}")

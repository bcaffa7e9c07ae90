"""Newly published adapters of a backbone, which a server takes in without a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial

from affinery.adapters.files import Adapter, read_adapter
from affinery.composed import ComposedModel
from affinery.errors import AffineryError
from affinery.serving.engine import Engine
from affinery_app.wiring import Workspace
from orchestration.errors import ExportRefused
from orchestration.exports import refuse_member
from registry import adapters, backbones, tasks
from registry.errors import AllRetired


def newcomers(space: Workspace, fingerprint: str, known: Collection[str]) -> list[Adapter]:
    """The learnt tasks of a backbone that a model does not hold, each at its latest version.

    What is retired or was not proved stays out.
    """
    found = []
    with space.sessions.read() as session:
        backbone = backbones.get(session, fingerprint)
        for task in tasks.list_all(session, backbone=backbone.ref):
            if task.name in known or not task.latest_version:
                continue
            try:
                record = adapters.get(session, f"adapter:{task.name}")
                refuse_member(session, backbone.ref, record)
            except (AllRetired, ExportRefused):
                continue
            found.append((record.task, record.blob_digest))
    for _, digest in found:
        space.store.verify(digest)
    return [read_adapter(space.store.path(digest), digest).named(name) for name, digest in found]


def take_in(space: Workspace, engine: Engine) -> list[str]:
    """Loads what is new between two passes. → the names of the tasks"""
    model = engine.model
    arrived = newcomers(space, model.fingerprint, list(model.slots))
    for adapter in arrived:
        engine.between_passes(partial(_load, adapter)).result()
    return [adapter.meta.task for adapter in arrived]


def _load(adapter: Adapter, model: ComposedModel) -> None:
    model.load(adapter)


def follow(
    space: Workspace, engine: Engine, seconds: float, say: Callable[[str], None], over: threading.Event
) -> None:
    """Looks again and again until it is over. A registry that is away for a while is looked at again."""
    while not over.wait(seconds):
        try:
            for name in take_in(space, engine):
                say(f"took in {name}")
        except AffineryError as error:
            say(f"note: {error}")

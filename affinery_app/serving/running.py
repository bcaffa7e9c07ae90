"""A model that is served: its engine, its application, and the registry that it follows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from affinery.serving.engine import Engine
from affinery_app.api.access import Token
from affinery_app.api.guard import Guard
from affinery_app.drawing import open_versions
from affinery_app.serving.application import Figures, guarded
from affinery_app.serving.following import follow
from affinery_app.wiring import open_workspace

LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Serving:
    """What a server is made of; every copy of it is made of the same.

    source: a bundle's folder or a composition; batch: images in one pass; waiting: images that may be under
    way; follow: whether it takes in what the workspace publishes.
    """

    source: str
    workspace: Path | None = None
    batch: int = 16
    waiting: int = 256
    follow: bool = False
    token: Token | None = None

    def application(self) -> Guard:
        """A copy that runs until its process ends."""
        return Running(self, lambda _: None).application


class Running:
    """A server's engine and what stands around it. say: hears what it takes in."""

    def __init__(self, serving: Serving, say: Callable[[str], None]) -> None:
        figures = Figures()
        space = open_workspace(serving.workspace) if serving.follow else None
        model, numbers = open_versions(serving.source, serving.workspace)
        self.engine = Engine(model, serving.batch, serving.waiting, figures.passes.observe, numbers)
        self.application = guarded(self.engine, serving.token, figures)
        self._over = threading.Event()
        if space is not None:
            told = (space, self.engine, LOOK_SECONDS, say, self._over)
            threading.Thread(target=follow, args=told, name="following", daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        self.engine.stop()

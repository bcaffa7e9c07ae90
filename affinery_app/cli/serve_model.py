"""affinery serve-model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from affinery.errors import ConfigInvalid
from affinery_app.cli import completion
from affinery_app.cli.ending import stop
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, say


def serve_model(
    source: Annotated[
        str,
        typer.Argument(
            help="A bundle's folder, or a composition in the registry.",
            autocompletion=completion.compositions,
        ),
    ],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8477,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images in one pass of the network.")] = 16,
    waiting: Annotated[int, typer.Option(min=1, help="Images that may be under way; more get 429.")] = 256,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Take in what the workspace publishes on this backbone."),
    ] = False,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Copies of the server on Ray Serve, at RAY_ADDRESS or on this machine."),
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, max=1024, help="With --ray: how many copies.")] = 1,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw images over HTTP until stopped (Ctrl-C or SIGTERM): POST /v1/generate.

    Whoever calls it shows the token in AFFINERY_TOKEN. Without one, this machine alone is listened to.
    """
    import os
    import signal

    from affinery_app.api.access import Token
    from affinery_app.api.application import bound, server
    from affinery_app.serving.running import Running, Serving

    if replicas > 1 and not ray:
        raise ConfigInvalid("--replicas", "copies run on Ray Serve: add --ray.")
    secret = os.environ.get("AFFINERY_TOKEN")
    token = Token.of(secret) if secret else None
    signal.signal(signal.SIGTERM, stop)
    socket = bound(host, port, known=token is not None)
    found = Path(source).resolve() if Path(source).is_dir() else source  # a copy stands in another folder
    serving = Serving(str(found), workspace and workspace.resolve(), batch, waiting, follow, token)
    running = Running(serving, say)
    port = socket.getsockname()[1]
    facts = {"tasks": running.engine.versions.tasks(), "batch": batch, "token": token is not None}
    if not ray:
        _tell(f"http://{f'[{host}]' if ':' in host else host}:{port}", facts, as_json)
        try:
            server(running.application).run(sockets=[socket])
        finally:
            running.stop()
        return
    running.stop()  # it opened, so its copies will
    socket.close()
    from orchestration.ray_serve import Copies, deployed

    copies = Copies(replicas, at_once=waiting)
    with deployed(serving.application, copies, host, port, os.environ.get("RAY_ADDRESS")) as url:
        signal.signal(signal.SIGTERM, stop)  # Ray has put its own there
        _tell(url, facts | {"replicas": replicas}, as_json)
        threading.Event().wait()


def _tell(url: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit({"url": url} | facts)
    else:
        fields([("url", url), ("tasks", facts["tasks"]), ("token", "asked for" if facts["token"] else None)])
    say("POST /v1/generate, GET /v1/tasks, GET /metrics. Ctrl-C ends it.")

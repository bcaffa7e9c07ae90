"""affinery serve-model."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, say


def serve_model(
    source: Annotated[str, typer.Argument(help="A bundle's folder, or a composition in the registry.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8477,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images in one pass of the network.")] = 16,
    waiting: Annotated[int, typer.Option(min=1, help="Images that may be under way; more get 429.")] = 256,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Take in what the workspace publishes on this backbone."),
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw images over HTTP until stopped (Ctrl-C or SIGTERM): POST /v1/generate.

    Whoever calls it shows the token in AFFINERY_TOKEN. Without one, this machine alone is listened to.
    """
    import os
    import signal

    from affinery.serving.engine import Engine
    from affinery_app.api.access import Token
    from affinery_app.api.application import bound, server
    from affinery_app.drawing import open_model
    from affinery_app.serving.application import Figures, guarded
    from affinery_app.serving.following import follow as follow_registry
    from affinery_app.wiring import open_workspace

    secret = os.environ.get("AFFINERY_TOKEN")
    token = Token.of(secret) if secret else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    socket = bound(host, port, known=token is not None)
    space = open_workspace(workspace) if follow else None
    figures = Figures()
    engine = Engine(open_model(source, workspace), batch, waiting, figures.passes.observe)
    address = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}"
    if as_json:
        emit({"url": address, "tasks": list(engine.model.slots), "batch": batch, "token": token is not None})
    else:
        fields(
            [("url", address), ("tasks", list(engine.model.slots)), ("token", "asked for" if token else None)]
        )
    say("POST /v1/generate, GET /v1/tasks, GET /metrics. Ctrl-C ends it.")
    over = threading.Event()
    if space is not None:
        told = (space, engine, 2.0, say, over)
        threading.Thread(target=follow_registry, args=told, name="following", daemon=True).start()
    try:
        server(guarded(engine, token, figures)).run(sockets=[socket])
    finally:
        over.set()
        engine.stop()

"""affinery serve."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, say


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the registry over HTTP, to read only, until stopped (Ctrl-C or SIGTERM)."""
    import signal

    from affinery_app.service import make_server
    from affinery_app.wiring import open_workspace

    space = open_workspace(workspace)
    _ = space.sessions  # a registry that cannot be read is told now, not at the first request
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with make_server(space, host, port) as server:
        address = f"http://{host}:{server.server_address[1]}"
        if as_json:
            emit({"address": address})
        say(f"serving {space.folder} at {address}, to read only")
        server.serve_forever()

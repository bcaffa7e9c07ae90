"""affinery serve."""

from __future__ import annotations

from typing import Annotated

import typer

from affinery_app.cli.ending import stop
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, say


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the registry over HTTP until stopped (Ctrl-C or SIGTERM).

    Whoever calls it shows a token (affinery token create), or the one in AFFINERY_TOKEN, which may do
    everything. Where there is none, this machine alone is listened to. Webhooks are told from here.
    """
    import signal

    from affinery_app.api.application import bound, door_of, guarded, server
    from affinery_app.wiring import open_workspace
    from orchestration.webhooks import Sender

    space = open_workspace(workspace)
    _ = space.sessions, space.store  # what cannot be read is told now, not at the first request
    door = door_of(space, host)
    signal.signal(signal.SIGTERM, stop)
    with bound(host, port, known=True) as listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        if as_json:
            emit({"address": address})
        say(f"serving {space.folder} at {address}; its routes: {address}/openapi.json")
        if door.stands_open:
            say("there is no token, so it answers to this machine only, which may read and write")
        sender = Sender(space.sessions, space.webhook_hosts)
        sender.start()
        try:
            server(guarded(space, door)).run(sockets=[listening])
        finally:
            sender.stop()

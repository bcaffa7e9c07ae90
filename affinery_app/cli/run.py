"""affinery run, affinery worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, following, say, table

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace


def run(
    listing: Annotated[bool, typer.Option("--list", help="Show the queue and do nothing.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train all that is scheduled, here, with progress; end when the queue is empty."""
    from affinery_app.wiring import open_workspace
    from orchestration import queue

    space = open_workspace(workspace)
    failures = 0 if listing else _drain(space)
    with space.sessions.read() as session:
        jobs = queue.list_all(session)
    if as_json:
        emit([job.to_json() for job in jobs])
    elif listing:
        table(
            ["job", "state", "tasks", "strategy", "attempts", "error"],
            [(j.id[:8], j.state, j.tasks, j.strategy, j.attempts, j.error) for j in jobs],
            "The queue has never held a job.",
        )
    else:
        following("affinery adapter list", "affinery compose NAME --task TASK …")
    if failures:
        raise typer.Exit(1)


def _drain(space: Workspace) -> int:
    """Runs the queue. → how many jobs failed for good"""
    from affinery_app.cli.progress import Screen
    from orchestration.worker import Worker

    with Screen() as screen:
        done = Worker(space.services(), screen).drain()
    if not done and not screen.failures:
        say("Nothing was waiting. Schedule a task: affinery task add NAME --dataset NAME --backbone NAME")
    return screen.failures


def worker(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Train what is scheduled as it comes, until stopped (Ctrl-C or SIGTERM gives the job back)."""
    import signal

    from affinery_app.cli.progress import JsonLines, Lines
    from affinery_app.wiring import open_workspace
    from orchestration.worker import Worker

    services = open_workspace(workspace).services()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say("worker: waiting for jobs")
    Worker(services, JsonLines() if as_json else Lines()).serve()

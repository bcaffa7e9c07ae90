"""affinery run, affinery worker."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli.ending import going_on, stop
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, following, say, table

if TYPE_CHECKING:
    from types import FrameType

    from affinery_app.cli.progress import Screen
    from affinery_app.wiring import Workspace
    from orchestration.jobs import Capacity
    from orchestration.services import Services

AWAY_SECONDS = 1.0
"""Between two looks for a registry that does not answer."""
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="So many jobs at once at most.", show_default="as many as fit")
]
CpusOption = Annotated[
    float | None, typer.Option(min=0.1, help="Processors to use.", show_default="this machine's")
]
GpusOption = Annotated[
    float | None, typer.Option(min=0.0, help="GPUs to use.", show_default="this machine's")
]
MemoryOption = Annotated[
    float | None, typer.Option(min=0.1, help="Memory to use, in GiB.", show_default="this machine's")
]


def run(
    listing: Annotated[bool, typer.Option("--list", help="Show the queue and do nothing.")] = False,
    jobs: JobsOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    memory: MemoryOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do all that is scheduled, here, with progress; end when the queue is empty."""
    from affinery_app.wiring import open_workspace
    from orchestration import queue

    space = open_workspace(workspace)
    ran = None if listing else _drain(space, jobs, _given(cpus, gpus, memory))
    with space.sessions.read() as session:
        found = queue.list_all(session)
    if as_json:
        emit([job.in_brief(here=True) for job in found])
    elif ran is None:
        table(
            ["job", "state", "tasks", "strategy", "attempts", "error"],
            [(j.id[:8], j.state, j.tasks, j.strategy, j.attempts, j.why) for j in found],
            "The queue has never held a job.",
        )
    else:
        show_next(*ran)
    if ran is not None and ran[0].failed_jobs:
        raise typer.Exit(1)


def _drain(space: Workspace, jobs: int | None, given: Capacity | None) -> tuple[Screen, int]:
    """Runs the queue. → what came of it, and how many jobs were done"""
    from affinery_app.cli.progress import Screen
    from orchestration.worker import Worker

    with Screen() as screen, going_on():
        done = Worker(space.services(), screen, jobs=jobs, given=given).drain()
    if not done and not screen.failed_jobs:
        say("Nothing was waiting. Schedule a task: affinery task add NAME --dataset NAME --backbone NAME")
    return screen, done


def show_next(screen: Screen, done: int) -> None:
    """What fits what came of the queue."""
    if screen.failed_jobs:
        following(*(f"affinery job logs {number}" for number in screen.failed_jobs))
    elif screen.published_any:
        following("affinery adapter list", "affinery compose NAME --task TASK …")
    elif done:
        following("affinery job list")


def worker(
    drain: Annotated[
        bool, typer.Option("--drain", help="When stopped, let running jobs end; a second signal does not.")
    ] = False,
    jobs: JobsOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    memory: MemoryOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do what is scheduled as it comes; Ctrl-C or SIGTERM saves what runs and gives it back."""
    import signal

    from affinery_app.cli.progress import JsonLines, Lines
    from affinery_app.wiring import open_workspace
    from orchestration.planner import told
    from orchestration.worker import Worker

    services = _once_there(open_workspace(workspace))
    made = Worker(services, JsonLines() if as_json else Lines(), jobs=jobs, given=_given(cpus, gpus, memory))

    def now(number: int, frame: FrameType | None) -> None:
        with going_on() if made.busy else nullcontext():
            stop(number, frame)

    def end(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, now)
        if not drain:
            now(number, frame)
        say("worker: ending; what runs goes on to its end (once more: it is saved and given back)")
        made.stop_claiming()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
    say(f"worker: waiting for jobs, with {told(made.capacity)}")
    made.serve()


def _once_there(space: Workspace) -> Services:
    """Where a team's machines start together, the database may be there last: a worker waits for it."""
    from registry.errors import RegistryBusy, RegistryUnreachable

    said = ""
    while True:
        try:
            return space.services()
        except (RegistryUnreachable, RegistryBusy) as error:
            if not space.registry_url.startswith("postgresql"):
                raise
            if str(error) != said:
                said = str(error)
                say(f"worker: waiting for the registry. {said}")
            time.sleep(AWAY_SECONDS)


def _given(cpus: float | None, gpus: float | None, memory: float | None) -> Capacity | None:
    """What a worker may use; what is not said is this machine's. None where nothing is said."""
    from orchestration.jobs import Capacity
    from orchestration.planner import GIB, machine

    if cpus is None and gpus is None and memory is None:
        return None
    here = machine().capacity
    return Capacity(
        here.cpus if cpus is None else cpus,
        here.gpus if gpus is None else gpus,
        here.memory_bytes if memory is None else memory * GIB,
    )

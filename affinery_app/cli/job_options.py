"""Options of jobs that several commands take."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from affinery_app.cli import completion

AfterOption = Annotated[
    list[str] | None, typer.Option(help="A job that must be done first: its number or id.")
]
PriorityOption = Annotated[int, typer.Option(help="Jobs of a higher priority run first.")]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        help="sequential, co-trained, parallel or data-parallel.", show_default="chosen where it runs"
    ),
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes that share one data-parallel training.")]
CpusOption = Annotated[
    float | None, typer.Option(min=0, help="Processors that it takes.", show_default="as its kind does")
]
GpusOption = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs that it takes; 0.5 is half of one.", show_default="as its kind does"),
]
KeyOption = Annotated[
    str | None, typer.Option(help="The same key again schedules nothing again.", show_default="none")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(min=1.0, help="Seconds that an attempt may take.", show_default="as long as it takes"),
]
MemoryOption = Annotated[
    float | None, typer.Option(min=0, help="Memory that it takes, in GiB.", show_default="as its kind does")
]
RunAtOption = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S%z"],
        metavar="TIME",
        help="Not before this time: 2030-01-31T03:00, of this machine's zone or with one (+01:00).",
        show_default="at once",
    ),
]
EveryOption = Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")]
JobArgument = Annotated[
    str,
    typer.Argument(
        help="The job's number, its id, or a unique beginning of that.", autocompletion=completion.jobs
    ),
]
LARGEST_GIB = 2.0**32


def moment(run_at: datetime | None) -> datetime | None:
    """A time that was typed, in UTC. Raises ConfigInvalid where that is in no calendar."""
    from affinery.errors import ConfigInvalid

    try:
        return None if run_at is None else run_at.astimezone(UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise ConfigInvalid("--run-at", f"{run_at:%Y-%m-%dT%H:%M} is too far away.") from error


def submitter() -> str:
    """Who schedules: the name of the user of this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def job_fields(
    priority: int,
    strategy: str | None,
    workers: int,
    cpus: float | None,
    gpus: float | None,
    memory_gib: float | None,
) -> dict[str, Any]:
    """Fields of an Order. Raises UnknownName and ConfigInvalid."""
    from affinery.errors import ConfigInvalid, UnknownName
    from orchestration.jobs import STRATEGIES

    if strategy is not None and strategy not in STRATEGIES:
        raise UnknownName("strategy", strategy, list(STRATEGIES))
    if memory_gib is not None and memory_gib > LARGEST_GIB:
        raise ConfigInvalid("--memory", f"{memory_gib:g} GiB is no amount.")
    return {
        "priority": priority,
        "strategy": strategy,
        "workers": workers,
        "cpus": cpus,
        "gpus": gpus,
        "memory_bytes": None if memory_gib is None else int(memory_gib * (1 << 30)),
        "submitted_by": submitter(),
    }

"""affinery job add | list | show | logs | watch | cancel | pause | resume | retry | priority."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion, job_add
from affinery_app.cli.job_options import EveryOption, JobArgument, submitter
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.cli.standing import progress, standing

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from affinery_app.wiring import Workspace
    from orchestration.jobs import JobRecord

app = typer.Typer(help="What waits, runs and ran; and what is to become of it.", no_args_is_help=True)
app.add_typer(job_add.app, name="add")
LONG = 300
FOLLOW_SECONDS = 0.5
COLUMNS = ["job", "id", "kind", "state", "tasks", "progress", "what"]


@app.command("list")
def list_page(
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; may be given several times.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only jobs of this kind.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Only jobs of this task.", autocompletion=completion.tasks)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    before: Annotated[int | None, typer.Option(help="Only jobs accepted before this number.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest jobs first, a page at a time."""
    from affinery.errors import UnknownName
    from affinery_app.wiring import open_workspace
    from orchestration import queue
    from orchestration.jobs import KINDS, STATES
    from orchestration.obstacles import obstacles
    from orchestration.planner import machine
    from registry import tasks

    for noun, given, known in (("state", state, STATES), ("kind", kind, KINDS)):
        for word in given or []:
            if word not in known:
                raise UnknownName(noun, word, list(known))
    with open_workspace(workspace).sessions.read() as session:
        task = None if task is None else tasks.get(session, task).name
        jobs = queue.page(
            session, before=before, limit=limit, states=state or (), kinds=kind or (), task=task
        )
        ways = obstacles(session, jobs, machine())
    if as_json:
        emit([job.in_brief() | {"obstacle": ways.get(job.id)} for job in jobs])
        return
    table(
        COLUMNS,
        [_line(job, ways.get(job.id)) for job in jobs],
        "No such job. Schedule a task: affinery task add NAME …",
    )
    if len(jobs) == limit:
        say(f"\nOlder ones: affinery job list --before {jobs[-1].number}")


@app.command("show")
def show(job: JobArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """One job: what it is to do, where it stands and why, and every attempt."""
    from affinery_app.wiring import open_workspace
    from orchestration import chores, queue
    from orchestration.obstacles import obstacles
    from orchestration.planner import machine

    with open_workspace(workspace).sessions.read() as session:
        record = queue.get(session, job)
        asked = chores.told(session, record.kind, record.payload)
        tries = queue.attempts(session, record.id)
        obstacle = obstacles(session, [record], machine()).get(record.id)
    if as_json:
        told = {"obstacle": obstacle, "tries": [each.to_json() for each in tries]}
        emit(record.to_json() | ({} if record.kind == "train" else {"asked": asked}) | told)
        return
    room = record.resources()
    fields(
        [
            ("job", f"{record.number} ({record.id})"),
            ("kind", record.kind),
            ("state", record.state),
            ("what", standing(record, obstacle)),
            ("tasks", record.tasks or None),
            *([] if record.kind == "train" else [("asked", json.dumps(asked, ensure_ascii=False))]),
            ("after", [need[:8] for need in record.needs] or None),
            ("strategy", record.strategy or "chosen where it runs"),
            ("takes", f"{room.cpus:g} processors, {room.gpus:g} GPUs"),
            ("priority", record.priority),
            ("submitted by", record.submitted_by),
            ("accepted", f"{record.created_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("progress", progress(record) or None),
            *((f"result: {name}", _short(value)) for name, value in _result(record).items()),
        ]
    )
    print()
    table(
        ["attempt", "began", "took", "outcome", "worker", "error"],
        [
            (
                each.number,
                f"{each.started_at:%Y-%m-%d %H:%M:%S}",
                f"{(each.ended_at - each.started_at).total_seconds():.0f} s" if each.ended_at else "…",
                each.outcome or "running",
                each.owner,
                each.error,
            )
            for each in tries
        ],
        "No attempt yet.",
    )
    if tries:
        following(f"affinery job logs {record.number}")


@app.command("logs")
def logs(
    job: JobArgument,
    attempt: Annotated[int | None, typer.Option(help="Which attempt.", show_default="the last")] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on as it is written, attempt by attempt, to the job's end."),
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What an attempt wrote: its errors in full, and what libraries said."""
    from affinery.errors import UnknownName
    from affinery_app.wiring import open_workspace
    from orchestration import queue

    space = open_workspace(workspace)
    if follow:
        if as_json or attempt is not None:
            raise typer.BadParameter("it follows all attempts as they come, as text", param_hint="--follow")
        _follow(space, job)
        return
    with space.sessions.read() as session:
        record = queue.get(session, job)
        tries = {each.number: each for each in queue.attempts(session, record.id)}
    if attempt is not None and attempt not in tries:
        raise UnknownName("attempt", str(attempt), [str(number) for number in tries])
    number = attempt or max(tries, default=0)
    path = _log(space.runs, record.id, tries[number].fence) if number else None
    text = path.read_text(errors="replace") if path is not None and path.exists() else ""
    if as_json:
        emit({"job": record.id, "attempt": number or None, "path": str(path) if path else None, "log": text})
    elif text:
        print(text, end="")
    elif not number:
        say("No attempt of it was begun yet.")
    else:
        say(f"Attempt {number} wrote nothing" + ("." if path and path.exists() else " on this machine."))
    if not as_json and number and tries[number].error:
        say(f"It ended: {tries[number].error}")


def _follow(space: Workspace, job: str) -> None:
    """Prints what each attempt writes while it does. Code 1 where the job is not done in the end."""
    from orchestration import queue
    from orchestration.jobs import LIVE

    printed: dict[int, int] = {}
    told: set[int] = set()
    while True:
        with space.sessions.read() as session:
            record = queue.get(session, job)
            tries = queue.attempts(session, record.id)
        for each in tries:
            path = _log(space.runs, record.id, each.fence)
            text = path.read_bytes()[printed.get(each.number, 0) :] if path.exists() else b""
            printed[each.number] = printed.get(each.number, 0) + len(text)
            print(text.decode(errors="replace"), end="", flush=True)
            if each.ended_at is not None and each.number not in told:
                told.add(each.number)
                say(f"Attempt {each.number}: {each.outcome}" + (f". {each.error}" if each.error else ""))
        if record.state not in LIVE:
            break
        time.sleep(FOLLOW_SECONDS)
    say(f"Job {record.number} is {record.state}." + (f" {record.error}" if record.error else ""))
    if record.state != "done":
        raise typer.Exit(1)


def _log(runs: Path, job_id: str, fence: int) -> Path:
    return runs / job_id / f"attempt-{fence}" / "driver.log"


@app.command("watch")
def watch(
    jobs: Annotated[
        list[str] | None, typer.Argument(help="Which jobs.", show_default="all that are not over")
    ] = None,
    every: EveryOption = 2.0,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show jobs as they move, with loss and time left, until all are over. Code 1 where one is not done."""
    from affinery_app.cli.watching import follow
    from affinery_app.wiring import open_workspace
    from orchestration import queue

    sessions = open_workspace(workspace).sessions
    with sessions.read() as session:
        known = [queue.get(session, job) for job in jobs] if jobs else queue.unfinished(session)
    if not follow(sessions, [job.id for job in known], every, as_json):
        raise typer.Exit(1)


@app.command("cancel")
def cancel(
    jobs: Annotated[list[str], typer.Argument(help="Jobs, by number or id.", autocompletion=completion.jobs)],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """End jobs: at once if they wait; one that runs is asked to stop, and is stopped where it does not."""
    from orchestration import queue

    _each(jobs, workspace, as_json, lambda session, job: [queue.cancel(session, job, submitter())])


@app.command("pause")
def pause(
    jobs: Annotated[list[str], typer.Argument(help="Jobs, by number or id.", autocompletion=completion.jobs)],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold jobs back; one that runs keeps its checkpoint and makes room."""
    from orchestration import queue

    _each(jobs, workspace, as_json, lambda session, job: [queue.pause(session, job, submitter())])


@app.command("resume")
def resume(
    jobs: Annotated[list[str], typer.Argument(help="Jobs, by number or id.", autocompletion=completion.jobs)],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let paused jobs go on where they stopped."""
    from orchestration import queue

    _each(jobs, workspace, as_json, lambda session, job: [queue.resume(session, job, submitter())])


@app.command("retry")
def retry(
    jobs: Annotated[list[str], typer.Argument(help="Jobs that are dead or cancelled, by number or id.")],
    with_waiting: Annotated[
        bool, typer.Option("--with-waiting", help="And jobs that are dead because of them.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take jobs up again that are dead or cancelled."""
    from orchestration import queue

    _each(
        jobs,
        workspace,
        as_json,
        lambda session, job: queue.retry(session, job, submitter(), with_waiting=with_waiting),
    )


@app.command("priority", context_settings={"ignore_unknown_options": True})  # -5 is a priority
def priority(
    job: JobArgument,
    value: Annotated[int, typer.Argument(help="Higher runs first; usual is 0.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a job forward or back in the queue."""
    from orchestration import queue

    _each(
        [job],
        workspace,
        as_json,
        lambda session, named: [queue.prioritise(session, named, value, submitter())],
    )


def _each(
    jobs: list[str],
    workspace: Path | None,
    as_json: bool,
    do: Callable[[Session, str], list[JobRecord]],
) -> None:
    """All of them in one transaction, or none."""
    from affinery_app.wiring import open_workspace

    with open_workspace(workspace).sessions.begin() as session:
        records = [record for job in jobs for record in do(session, job)]
    if as_json:
        emit([record.to_json() for record in records])
    else:
        table(COLUMNS, [_line(record) for record in records], "")


def _line(job: JobRecord, obstacle: str | None = None) -> tuple[Any, ...]:
    return (job.number, job.id[:8], job.kind, job.state, job.tasks, progress(job), standing(job, obstacle))


def _result(job: JobRecord) -> dict[str, Any]:
    found: dict[str, Any] = (job.progress or {}).get("result", {})
    return found


def _short(value: Any) -> str:
    """One part of a result; what is long stands in --json."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONG else f"{text[: LONG - 1]}… (all of it: --json)"

"""affinery job add | list | show | logs | watch | cancel | pause | resume | retry | priority."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion, job_add
from affinery_app.cli.job_options import EveryOption, JobArgument
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, short, table
from affinery_app.cli.place import UrlOption, place
from affinery_app.cli.standing import progress, standing

if TYPE_CHECKING:
    from affinery_app.cli.here import Here
    from affinery_app.cli.there import There
    from orchestration.about import AboutJob
    from orchestration.jobs import JobRecord

app = typer.Typer(help="What waits, runs and ran; and what is to become of it.", no_args_is_help=True)
app.add_typer(job_add.app, name="add")
FOLLOW_SECONDS = 0.5
COLUMNS = ["job", "id", "kind", "state", "tasks", "progress", "what"]


@app.command("list")
def list_page(
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only jobs in this state; may be given several times.", autocompletion=completion.job_states
        ),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only jobs of this kind.", autocompletion=completion.job_kinds)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Only jobs of this task.", autocompletion=completion.tasks)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    before: Annotated[int | None, typer.Option(help="Only jobs accepted before this number.")] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest jobs first, a page at a time."""
    with place(url, workspace) as where:
        jobs, ways = where.jobs(state or (), kind or (), task, before, limit)
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
def show(
    job: JobArgument, url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """One job: what it is to do, where it stands and why, and every attempt."""
    from orchestration import planner

    with place(url, workspace) as where:
        found = where.job(job)
    if as_json:
        emit(found.to_json(here=True))
        return
    record, tries, room = found.record, found.tries, found.record.resources()
    fields(
        [
            ("job", f"{record.number} ({record.id})"),
            ("kind", record.kind),
            ("state", record.state),
            ("what", standing(record, found.obstacle) or None),
            ("tasks", record.tasks or None),
            *([] if found.asked is None else [("asked", json.dumps(found.asked, ensure_ascii=False))]),
            ("after", [need[:8] for need in record.needs] or None),
            ("strategy", record.strategy or "chosen where it runs"),
            ("takes", planner.told(room)),
            ("priority", record.priority),
            ("submitted by", record.submitted_by),
            ("accepted", f"{record.created_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("progress", progress(record) or None),
            *((f"result: {name}", short(value)) for name, value in _result(record).items()),
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
                each.why,
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
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What an attempt wrote: its errors in full, and what libraries said."""
    from affinery.errors import UnknownName

    if follow and (as_json or attempt is not None):
        raise typer.BadParameter("it follows all attempts as they come, as text", param_hint="--follow")
    with place(url, workspace) as where:
        found = where.job(job)
        if follow:
            _follow(where, found)
            return
        tries = {each.number: each for each in found.tries}
        if attempt is not None and attempt not in tries:
            raise UnknownName("attempt", str(attempt), [str(number) for number in tries])
        number = attempt or max(tries, default=0)
        written, path = where.log(found.record, tries[number]) if number else (b"", None)
    text = written.decode(errors="replace")
    if as_json:
        emit({"job": found.record.id, "attempt": number or None, "log": text})
    elif text:
        print(text, end="")
    elif not number:
        say("No attempt of it was begun yet.")
    else:
        say(f"Attempt {number} wrote nothing" + ("." if path or url else " on this machine."))
    if not as_json and number and tries[number].why:
        say(f"It ended: {tries[number].why}")


def _follow(where: Here | There, found: AboutJob) -> None:
    """Prints what each attempt writes while it does. Code 1 where the job is not done in the end."""
    from orchestration.jobs import LIVE

    printed: dict[int, int] = {}
    told: set[int] = set()
    while True:
        record = found.record
        for each in found.tries:
            text, _ = where.log(record, each, printed.get(each.number, 0))
            printed[each.number] = printed.get(each.number, 0) + len(text)
            print(text.decode(errors="replace"), end="", flush=True)
            if each.ended_at is not None and each.number not in told:
                told.add(each.number)
                say(f"Attempt {each.number}: {each.outcome}" + (f". {each.why}" if each.why else ""))
        if record.state not in LIVE:
            break
        time.sleep(FOLLOW_SECONDS)
        found = where.job(record.id)
    say(f"Job {record.number} is {record.state}." + (f" {record.why}" if record.why else ""))
    if record.state != "done":
        raise typer.Exit(1)


@app.command("watch")
def watch(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which jobs.", show_default="all that are not over", autocompletion=completion.jobs
        ),
    ] = None,
    every: EveryOption = 2.0,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show jobs as they move, with loss and time left, until all are over. Code 1 where one is not done."""
    from affinery_app.cli.watching import follow

    with place(url, workspace) as where:
        known = [where.job(job).record for job in jobs] if jobs else where.unfinished()
        if not follow(where.look, [job.id for job in known], every, as_json):
            raise typer.Exit(1)


@app.command("cancel")
def cancel(
    jobs: Annotated[list[str], typer.Argument(help="Jobs, by number or id.", autocompletion=completion.jobs)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """End jobs: at once if they wait; one that runs is asked to stop, and is stopped where it does not."""
    with place(url, workspace) as where:
        _told(where.cancel(jobs), as_json)


@app.command("pause")
def pause(
    jobs: Annotated[list[str], typer.Argument(help="Jobs, by number or id.", autocompletion=completion.jobs)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold jobs back; one that runs keeps its checkpoint and makes room."""
    with place(url, workspace) as where:
        _told(where.pause(jobs), as_json)


@app.command("resume")
def resume(
    jobs: Annotated[list[str], typer.Argument(help="Jobs, by number or id.", autocompletion=completion.jobs)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let paused jobs go on where they stopped."""
    with place(url, workspace) as where:
        _told(where.resume(jobs), as_json)


@app.command("retry")
def retry(
    jobs: Annotated[
        list[str],
        typer.Argument(
            help="Jobs that are dead or cancelled, by number or id.", autocompletion=completion.jobs
        ),
    ],
    with_waiting: Annotated[
        bool, typer.Option("--with-waiting", help="And jobs that are dead because of them.")
    ] = False,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take jobs up again that are dead or cancelled."""
    with place(url, workspace) as where:
        _told(where.retry(jobs, with_waiting), as_json)


@app.command("priority", context_settings={"ignore_unknown_options": True})  # -5 is a priority
def priority(
    job: JobArgument,
    value: Annotated[int, typer.Argument(help="Higher runs first; usual is 0.")],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a job forward or back in the queue."""
    with place(url, workspace) as where:
        _told(where.prioritise(job, value), as_json)


def _told(records: list[JobRecord], as_json: bool) -> None:
    if as_json:
        emit([record.to_json(here=True) for record in records])
    else:
        table(COLUMNS, [_line(record) for record in records], "")


def _line(job: JobRecord, obstacle: str | None = None) -> tuple[Any, ...]:
    return (job.number, job.id[:8], job.kind, job.state, job.tasks, progress(job), standing(job, obstacle))


def _result(job: JobRecord) -> dict[str, Any]:
    found: dict[str, Any] = (job.progress or {}).get("result", {})
    return found

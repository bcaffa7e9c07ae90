"""affinery schedule add | list | pause | resume | rm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.job_options import PriorityOption
from affinery_app.cli.kind_options import parsed
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, table
from affinery_app.cli.place import UrlOption, place

if TYPE_CHECKING:
    from orchestration.queue.schedules import ScheduleRecord

app = typer.Typer(help="Trainings that come again by themselves.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="The schedule's name.")]


@app.command("add")
def add(
    name: NameArgument,
    cron: Annotated[str, typer.Option(help="When: minute hour day month weekday, as '0 3 * * *'.")],
    task: Annotated[
        list[str],
        typer.Option(help="A task to train; may be given several times.", autocompletion=completion.tasks),
    ],
    when_changed: Annotated[
        bool, typer.Option("--when-changed", help="Only tasks whose dataset has a newer version.")
    ] = False,
    together: Annotated[bool, typer.Option("--together", help="Train them together, in one job.")] = False,
    tz: Annotated[str, typer.Option(help="The time zone of the times.")] = "UTC",
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting of the training, as NAME=VALUE.")
    ] = None,
    priority: PriorityOption = 0,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train tasks again and again; workers see to it. What was missed while none was there is done once."""
    given: dict[str, Any] = {} if steps is None else {"steps": steps}
    how = {"timezone": tz, "when_changed": when_changed, "together": together, "priority": priority}
    with place(url, workspace) as where:
        record = where.schedule_repeatedly(name, cron, task, given | parsed(settings or []), how)
    _show(record, as_json)
    if not as_json:
        following("affinery schedule list", *([] if url else ["affinery worker"]))


@app.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All schedules, and when they fire next."""
    with place(url, workspace) as where:
        records = where.schedules()
    if as_json:
        emit([record.to_json() for record in records])
        return
    table(
        ["schedule", "when", "zone", "tasks", "only when changed", "next (UTC)", "last (UTC)"],
        [
            (
                record.name,
                record.cron,
                record.timezone,
                record.tasks,
                "yes" if record.when_changed else "no",
                "paused" if record.paused else f"{record.next_run_at:%Y-%m-%d %H:%M}",
                f"{record.last_run_at:%Y-%m-%d %H:%M}" if record.last_run_at else None,
            )
            for record in records
        ],
        "No schedule. Add one: affinery schedule add NAME --cron '0 3 * * *' --task TASK",
    )


@app.command("pause")
def pause(
    name: NameArgument, url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Fire no more, until it is resumed."""
    with place(url, workspace) as where:
        _show(where.pause_schedule(name, True), as_json)


@app.command("resume")
def resume(
    name: NameArgument, url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Go on with the next time after now."""
    with place(url, workspace) as where:
        _show(where.pause_schedule(name, False), as_json)


@app.command("rm")
def remove(
    name: NameArgument,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a schedule; the jobs that it made stay."""
    with place(url, workspace) as where:
        where.remove_schedule(name)
    if as_json:
        emit({"removed": name})
    else:
        fields([("removed", name)])


def _show(record: ScheduleRecord, as_json: bool) -> None:
    if as_json:
        emit(record.to_json())
        return
    fields(
        [
            ("schedule", record.name),
            ("when", f"{record.cron} in {record.timezone}"),
            ("tasks", record.tasks),
            ("next", "paused" if record.paused else f"{record.next_run_at:%Y-%m-%d %H:%M} UTC"),
        ]
    )

"""affinery backbone rebase, affinery dataset upgrade: train tasks again for what is new beneath them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.kind_options import parsed
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, following, say, table

if TYPE_CHECKING:
    from orchestration.retraining import Step

OldArgument = Annotated[
    str, typer.Argument(help="The backbone that tasks are on.", autocompletion=completion.backbones)
]
NewArgument = Annotated[
    str, typer.Argument(help="The backbone to learn them on anew.", autocompletion=completion.backbones)
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--task", help="Only this task; repeat for more.", autocompletion=completion.tasks),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the trainings in place of those before, as NAME=VALUE."),
]
ColdOption = Annotated[bool, typer.Option("--cold", help="Begin afresh instead of from the latest adapters.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; schedule nothing.")]


def rebase(
    old: OldArgument,
    new: NewArgument,
    task: OnlyOption = None,
    settings: SettingsOption = None,
    cold: ColdOption = False,
    dry_run: DryOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn a backbone's tasks anew on another, with the same classes. Run twice, it adds nothing."""
    from affinery_app.wiring import open_workspace
    from orchestration.rebase import rebase as plan_and_schedule

    space = open_workspace(workspace)
    given = parsed(settings or [])
    plan = plan_and_schedule(
        space.sessions, space.store, old, new, only=task or (), given=given, warm=not cold, dry_run=dry_run
    )
    if as_json:
        emit(plan.to_json() | {"dry_run": dry_run})
        return
    rows = [(step.task, step.learner, _done(step), step.reason) for step in plan.steps]
    table([plan.old.ref, plan.new.ref, "", "how"], rows, f"No task is on {plan.old.ref}.")
    _afresh(plan.steps)
    _close(plan.steps, dry_run, f"still on {plan.old.ref} alone")


def upgrade(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="The tasks to upgrade.", show_default="none", autocompletion=completion.tasks),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every task.")] = False,
    to: Annotated[
        str | None,
        typer.Option(
            help="The dataset version.",
            show_default="the newest of each task's own",
            autocompletion=completion.datasets,
        ),
    ] = None,
    settings: SettingsOption = None,
    cold: ColdOption = False,
    dry_run: DryOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train tasks on the newest version of their dataset, in the same class rows."""
    from affinery.errors import ConfigInvalid
    from affinery_app.wiring import open_workspace
    from orchestration.upgrades import upgrade as plan_and_schedule

    if bool(tasks) == everything:
        raise ConfigInvalid("upgrade", "name the tasks, or say --all for every one.")
    found = plan_and_schedule(
        open_workspace(workspace).sessions,
        tasks or (),
        to=to,
        given=parsed(settings or []),
        warm=not cold,
        dry_run=dry_run,
    )
    if as_json:
        emit({"dry_run": dry_run, "tasks": [each.to_json() for each in found]})
        return
    rows = [(each.step.task, each.on, each.to, _done(each.step), each.step.reason) for each in found]
    table(["task", "on", "newest", "", "how"], rows, "No task yet.")
    _close([each.step for each in found], dry_run, "still on an older version")


def _done(step: Step) -> str:
    if step.action != "schedule":
        return {"there": "done", "refused": "not done"}[step.action]
    return "would be scheduled" if step.job is None else f"job {step.job[:8]}"


def _afresh(steps: Sequence[Step]) -> None:
    for step in steps:
        if step.fresh:
            more = f" and {len(step.fresh) - 6} more" if len(step.fresh) > 6 else ""
            say(f"{step.learner}: begun afresh: {', '.join(step.fresh[:6])}{more}")


def _close(steps: Sequence[Step], dry_run: bool, left: str) -> None:
    refused = [step.task for step in steps if step.action == "refused"]
    if refused:
        say(f"{left}: {', '.join(refused)}")
    if any(step.action == "schedule" for step in steps):
        following(*(["the same without --dry-run"] if dry_run else ["affinery run"]))

"""affinery task add | train | list | show | watch."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.condition_options import (
    ConditionOption,
    HighOption,
    LowOption,
    ModelOption,
    SizeOption,
)
from affinery_app.cli.job_options import (
    AfterOption,
    CpusOption,
    EveryOption,
    GpusOption,
    KeyOption,
    MemoryOption,
    PriorityOption,
    RunAtOption,
    StrategyOption,
    TimeoutOption,
    WorkersOption,
    job_fields,
    moment,
)
from affinery_app.cli.kind_options import (
    AlphaOption,
    PartsOption,
    RankOption,
    TargetsOption,
    kind_values,
    parsed,
    sorted_out,
)
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.cli.place import UrlOption, place

app = typer.Typer(help="What a backbone is to learn, and when.", no_args_is_help=True)


@app.command("add")
def add(
    asked: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(help="One task, or several to learn together (co-trained).")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The backbone to learn on.", autocompletion=completion.backbones)
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Many tasks at once, from a plan.yaml: the guide of the queue tells of it."
        ),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together/--apart", help="Train several in one job, or each in its own.")
    ] = True,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="The dataset, one a task in their order.",
            show_default="the task's name",
            autocompletion=completion.datasets,
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="The adapter kind, of all tasks or one a task in their order: affinery adapter kinds.",
            show_default="affiner",
            autocompletion=completion.kinds,
        ),
    ] = None,
    rank: RankOption = None,
    alpha: AlphaOption = None,
    targets: TargetsOption = None,
    parts: PartsOption = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a task and step.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of everything random.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of the training or the kind, as NAME=VALUE."),
    ] = None,
    condition: ConditionOption = None,
    canny_low: LowOption = None,
    canny_high: HighOption = None,
    condition_model: ModelOption = None,
    image_size: SizeOption = None,
    after: AfterOption = None,
    priority: PriorityOption = 0,
    strategy: StrategyOption = None,
    workers: WorkersOption = 1,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    memory: MemoryOption = None,
    run_at: RunAtOption = None,
    timeout: TimeoutOption = None,
    key: KeyOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would run, in which order and at what cost; keep nothing."),
    ] = False,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add tasks and schedule their training; several at once train together on the one frozen backbone."""
    from affinery.errors import ConfigInvalid
    from affinery_app.cli.rehearsal import show_rehearsal
    from affinery_app.plan_file import read_plan, wanted_of
    from orchestration.conditions import conditions_of
    from orchestration.rehearsal import Rehearsal
    from orchestration.scheduling import Wanted
    from trainers.recipe import Recipe

    given: dict[str, Any] = {"steps": steps, "batch": batch, "seed": seed}
    recipe = {name: value for name, value in given.items() if value is not None}
    job = job_fields(priority, strategy, workers, cpus, gpus, memory)
    job |= {"run_at": moment(run_at), "timeout_seconds": timeout}
    if plan is not None:
        if beside := _beside_plan(asked):
            told = f"the plan says all of it; beside it goes only --dry-run, and not {', '.join(beside)}."
            raise ConfigInvalid("--from", told)
        wanted = list(wanted_of(read_plan(plan), plan, submitted_by=job["submitted_by"]))
    else:
        if not names or backbone is None:
            raise ConfigInvalid("task add", "name a task and its --backbone, or a plan: --from plan.yaml")
        kinds = kind or ["affiner"]
        own, others = sorted_out(kinds, parsed(settings or []), Recipe().to_dict())
        whole = Wanted(
            tuple(names),
            tuple(dataset or names),
            backbone,
            tuple(kinds),
            kind_values(rank, alpha, targets, parts) | own,
            recipe=recipe | others,
            conditions=tuple(conditions_of(condition or (), canny_low, canny_high, condition_model)),
            image_size=image_size,
            after=tuple(after or ()),
            key=key,
            job=job,
        )
        wanted = [whole]
    rehearsal = Rehearsal() if dry_run else None
    with place(url, workspace) as where:
        found = where.schedule(wanted, together, lambda note: say(f"note: {note}"), rehearsal)
    if rehearsal is not None:
        show_rehearsal(rehearsal, as_json)
    elif as_json:
        jobs = [each.job.to_json(here=True) | {"new": each.new} for each in found]
        emit(jobs if plan is not None or not together else jobs[0])
    else:
        table(
            ["job", "id", "tasks", "strategy", "steps", ""],
            [
                (
                    each.job.number,
                    each.job.id[:8],
                    each.job.tasks,
                    each.job.strategy or "chosen where it runs",
                    each.job.recipe["steps"],
                    "scheduled" if each.new else f"was there already: {each.job.state}",
                )
                for each in found
            ],
            "",
        )
        following(*([] if url else ["affinery run"]), "affinery task watch")


BESIDE_PLAN = frozenset(("plan", "dry_run", "url", "workspace", "as_json"))


def _beside_plan(asked: typer.Context) -> list[str]:
    """What was typed that a plan would leave unheard."""
    typed = [
        each
        for each in asked.command.params
        if each.name not in BESIDE_PLAN and _was_typed(asked, str(each.name))
    ]
    return [each.opts[0] for each in typed]


def _was_typed(asked: typer.Context, name: str) -> bool:
    source = asked.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command("train")
def train(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Tasks that are there already; several train together.", autocompletion=completion.tasks
        ),
    ],
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a task and step.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of everything random.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting of the training, as NAME=VALUE.")
    ] = None,
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="Begin from each task's latest adapter that is in use.")
    ] = False,
    begin_from: Annotated[
        list[str] | None,
        typer.Option(help="The adapter to begin from, one a task in their order; of the same kind."),
    ] = None,
    after: AfterOption = None,
    priority: PriorityOption = 0,
    strategy: StrategyOption = None,
    workers: WorkersOption = 1,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    memory: MemoryOption = None,
    run_at: RunAtOption = None,
    timeout: TimeoutOption = None,
    key: KeyOption = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Schedule tasks again: after a failure, or for the next version of their adapters."""
    given: dict[str, Any] = {"steps": steps, "batch": batch, "seed": seed}
    recipe = {name: value for name, value in given.items() if value is not None} | parsed(settings or [])
    asked = job_fields(priority, strategy, workers, cpus, gpus, memory)
    asked |= {"run_at": moment(run_at), "timeout_seconds": timeout, "key": key}
    older = begin_from or (() if warm_start else None)
    with place(url, workspace) as where:
        job = where.train(names, recipe, older, after or (), asked)
    if as_json:
        emit(job.to_json(here=True))
        return
    strategy = job.strategy or "chosen where it runs"
    fields(
        [
            ("job", f"{job.number} ({job.id})"),
            ("state", job.state),
            ("tasks", job.tasks),
            ("strategy", strategy),
            ("steps", job.recipe["steps"]),
        ]
    )
    following(*([] if url else ["affinery run"]), "affinery task watch")


@app.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All tasks and how far they are."""
    with place(url, workspace) as where:
        found = where.tasks()
    if as_json:
        emit([record.to_json(here=True) for record in found])
        return
    table(
        ["task", "state", "kind", "backbone", "dataset", "class rows", "versions"],
        [
            (
                r.name,
                r.state,
                r.kind,
                r.backbone,
                r.dataset,
                f"[{r.block[0]}, {r.block[1]})",
                r.latest_version,
            )
            for r in found
        ],
        "No task yet. Add one: affinery task add NAME --dataset NAME --backbone NAME",
    )


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The task.", autocompletion=completion.tasks)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """One task: its classes, its jobs and its adapters."""
    with place(url, workspace) as where:
        record = where.task(name)
        jobs = where.jobs(task=record.name)[0][::-1]
        versions = where.adapters(task=record.name)
    if as_json:
        learnt = [version.to_json() for version in versions]
        emit(
            record.to_json(here=True)
            | {"jobs": [job.in_brief(here=True) for job in jobs], "adapters": learnt}
        )
        return
    fields(
        [
            ("task", record.name),
            ("state", record.state),
            ("kind", record.kind),
            ("config", json.dumps(record.config)),
            *([("condition", json.dumps(record.condition))] if record.condition else []),
            *([("image size", record.image_size)] if record.image_size else []),
            ("backbone", record.backbone),
            ("dataset", record.dataset),
            ("class rows", f"[{record.block[0]}, {record.block[1]})"),
            ("classes", record.classes),
        ]
    )
    print()
    table(
        ["job", "state", "strategy", "attempts", "error"],
        [(j.id[:8], j.state, j.strategy or "–", j.attempts, j.why) for j in jobs],
        "No job.",
    )
    print()
    table(
        ["adapter", "parameters", "recognition", "published"],
        [
            (v.ref, f"{v.parameters:,}", _recognition(v.metrics), f"{v.created_at:%Y-%m-%d %H:%M}")
            for v in versions
        ],
        "No adapter yet. Train it: affinery run",
    )


@app.command("watch")
def watch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which tasks.",
            show_default="all with a job that is not over",
            autocompletion=completion.tasks,
        ),
    ] = None,
    every: EveryOption = 2.0,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what tasks are learning: step, loss and time left, until their jobs are over."""
    from affinery_app.cli.watching import follow

    with place(url, workspace) as where:
        wanted = {where.task(name).name for name in names or ()}
        unfinished = where.unfinished()
        chosen = [job.id for job in unfinished if (wanted & set(job.tasks) if names else job.tasks)]
        if not follow(where.look, chosen, every, as_json):
            raise typer.Exit(1)
    following(f"affinery task show {quote(next(iter(sorted(wanted)), 'NAME'))}", "affinery adapter list")


def _recognition(metrics: dict[str, Any]) -> str:
    from registry.metrics import recognition

    share = recognition(metrics).share
    return "–" if share is None else f"{share:.0%}"

"""affinery job add evaluate | export | rebase | retention | verify: what trains nothing, done by a worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli import completion
from affinery_app.cli.compose import BackboneOption, ExportTaskOption, FormatOption, UnverifiedOption
from affinery_app.cli.evaluate import (
    AgainstOption,
    ConditionModelOption,
    ExtractorOption,
    GuidanceOption,
    RefsArgument,
    SamplesOption,
    SeedOption,
    StepsOption,
    chore_of,
)
from affinery_app.cli.job_options import (
    AfterOption,
    CpusOption,
    GpusOption,
    KeyOption,
    PriorityOption,
    RunAtOption,
    TimeoutOption,
    moment,
)
from affinery_app.cli.kind_options import parsed
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say
from affinery_app.cli.place import UrlOption, place
from affinery_app.cli.rebase import ColdOption, NewArgument, OldArgument, OnlyOption, SettingsOption
from affinery_app.cli.retention import BackboneArgument
from affinery_app.cli.retention import chore_of as remembered

if TYPE_CHECKING:
    from orchestration.chores import Chore

app = typer.Typer(help="Schedule what trains nothing.", no_args_is_help=True)


@app.command("evaluate")
def evaluate(
    adapters: RefsArgument,
    samples: SamplesOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    extractor: ExtractorOption = None,
    condition_model: ConditionModelOption = None,
    against: AgainstOption = None,
    after: AfterOption = None,
    priority: PriorityOption = 0,
    key: KeyOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    timeout: TimeoutOption = None,
    run_at: RunAtOption = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw samples of adapters, measure them, and record the figures under their protocol."""
    chore = chore_of(adapters, samples, seed, steps, guidance, extractor, condition_model, against)
    room = {"cpus": cpus, "gpus": gpus, "timeout_seconds": timeout, "run_at": moment(run_at)}
    _schedule(chore, after, priority, key, url, workspace, as_json, room)


@app.command("export")
def export(
    ref: Annotated[
        str,
        typer.Argument(
            help="The composition: name, or name@version.", autocompletion=completion.compositions
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where it goes; folders on the way to it are made.",
            show_default="in the workspace, below exports/",
        ),
    ] = None,
    file_format: FormatOption = "bundle",
    task: ExportTaskOption = None,
    backbone: BackboneOption = True,
    unverified: UnverifiedOption = False,
    after: AfterOption = None,
    priority: PriorityOption = 0,
    key: KeyOption = None,
    timeout: TimeoutOption = None,
    run_at: RunAtOption = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a composition as a bundle or in another format, as `affinery export` does at once."""
    from orchestration.chores import Export, read

    asked = {"composition": ref, "format": file_format, "task": task, "unverified": unverified}
    asked |= {"backbone": backbone, "out": None if out is None else str(out.absolute())}
    chore = read(Export, asked)
    room = {"timeout_seconds": timeout, "run_at": moment(run_at)}
    _schedule(chore, after, priority, key, url, workspace, as_json, room)


@app.command("rebase")
def rebase(
    old: OldArgument,
    new: NewArgument,
    task: OnlyOption = None,
    settings: SettingsOption = None,
    cold: ColdOption = False,
    after: AfterOption = None,
    priority: PriorityOption = 0,
    key: KeyOption = None,
    timeout: TimeoutOption = None,
    run_at: RunAtOption = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan a backbone's rebase when its turn comes, as it is then, and schedule the trainings."""
    from orchestration.chores import Rebase, read

    given = {"old": old, "new": new, "only": task or [], "recipe": parsed(settings or []), "warm": not cold}
    chore = read(Rebase, given)
    room = {"timeout_seconds": timeout, "run_at": moment(run_at)}
    _schedule(chore, after, priority, key, url, workspace, as_json, room)


@app.command("retention")
def retention(
    backbone: BackboneArgument,
    samples: SamplesOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    extractor: ExtractorOption = None,
    after: AfterOption = None,
    priority: PriorityOption = 0,
    key: KeyOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    timeout: TimeoutOption = None,
    run_at: RunAtOption = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every task after every addition to a backbone, as `affinery retention` does at once."""
    chore = remembered(backbone, samples, seed, steps, extractor)
    room = {"cpus": cpus, "gpus": gpus, "timeout_seconds": timeout, "run_at": moment(run_at)}
    _schedule(chore, after, priority, key, url, workspace, as_json, room)


@app.command("verify")
def verify(
    ref: Annotated[
        str | None,
        typer.Argument(
            help="Only this, and all that it was made from.",
            show_default="everything",
            autocompletion=completion.things,
        ),
    ] = None,
    after: AfterOption = None,
    priority: PriorityOption = 0,
    key: KeyOption = None,
    timeout: TimeoutOption = None,
    run_at: RunAtOption = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every blob and ask every row; the findings are the job's result."""
    from orchestration.chores import Verification, read

    chore = read(Verification, {"ref": ref})
    room = {"timeout_seconds": timeout, "run_at": moment(run_at)}
    _schedule(chore, after, priority, key, url, workspace, as_json, room)


def _schedule(
    chore: Chore,
    after: list[str] | None,
    priority: int,
    key: str | None,
    url: str | None,
    workspace: Path | None,
    as_json: bool,
    room: dict[str, Any],
) -> None:
    with place(url, workspace) as where:
        found = where.put_off(chore, after or (), room | {"priority": priority, "key": key})
    if as_json:
        emit(found.job.to_json(here=True) | {"new": found.new})
        return
    fields([("job", f"{found.job.number} ({found.job.id})"), ("kind", found.job.kind)])
    if not found.new:
        say(f"It was there already: {found.job.state}")
    following(*([] if url else ["affinery run"]), f"affinery job show {found.job.number}")

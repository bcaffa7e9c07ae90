"""affinery evaluate | evaluations | compare."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.job_options import AfterOption, submitter
from affinery_app.cli.output import (
    JsonOption,
    WorkspaceOption,
    emit,
    fields,
    following,
    say,
    table,
)
from affinery_app.cli.place import UrlOption, place

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from orchestration.chores import Chore, Evaluation
    from registry.records import EvaluationRecord

RefsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Adapters: a task's latest by its name, name@version, an alias.",
        autocompletion=completion.adapters,
    ),
]
SamplesOption = Annotated[
    int | None, typer.Option(min=1, help="Samples to draw of each.", show_default="200")
]
SeedOption = Annotated[int, typer.Option(min=0, help="The seed of everything random.")]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Steps of the sampler.", show_default="the backbone's advice")
]
GuidanceOption = Annotated[
    float | None, typer.Option(min=0, help="Guidance; 1 is none.", show_default="the backbone's advice")
]
ExtractorOption = Annotated[
    str | None,
    typer.Option(
        help="Who looks: recogniser, inception=WEIGHTS.pth, clip=FOLDER, timm:MODEL=CHECKPOINT.",
        show_default="recogniser",
    ),
]
ConditionModelOption = Annotated[
    Path | None, typer.Option(help="A model's folder that draws the task's condition from its samples.")
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        help="Measure all against the images of this dataset version.",
        autocompletion=completion.datasets,
        show_default="what each learnt from",
    ),
]
LaterOption = Annotated[bool, typer.Option("--later", help="Schedule it as a job instead of doing it now.")]


def chore_of(
    refs: list[str],
    samples: int | None,
    seed: int,
    steps: int | None,
    guidance: float | None,
    extractor: str | None,
    condition_model: Path | None,
    against: str | None,
) -> Evaluation:
    """What is asked for, its paths absolute. Raises JobInvalid."""
    from orchestration.chores import Evaluation, read

    model = None if condition_model is None else str(condition_model.absolute())
    given = {"adapters": refs, "samples": samples, "seed": seed, "steps": steps, "guidance": guidance}
    looked = {"extractor": looks(extractor), "condition_model": model, "against": against}
    return read(Evaluation, given | looked)


def looks(extractor: str | None) -> str | None:
    """An extractor as it was typed, its path absolute."""
    if extractor is None or "=" not in extractor:
        return extractor
    kind, _, where = extractor.partition("=")
    return f"{kind}={Path(where).expanduser().absolute()}"


def evaluate(
    refs: RefsArgument,
    samples: SamplesOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    extractor: ExtractorOption = None,
    condition_model: ConditionModelOption = None,
    against: AgainstOption = None,
    later: LaterOption = False,
    after: AfterOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw samples of adapters, measure them, and record the figures under their protocol."""
    from affinery.errors import ConfigInvalid
    from affinery_app.wiring import open_workspace
    from orchestration import evaluations

    asked = chore_of(refs, samples, seed, steps, guidance, extractor, condition_model, against)
    space = open_workspace(workspace)
    if later:
        put_off(space, asked, after, as_json)
        return
    if after:
        raise ConfigInvalid("--after", "only a job waits for others; add --later.")
    services, found = space.services(), []
    with space.sessions.read() as session:
        asked.check(session)
    for ref in asked.adapters:
        measured = evaluations.measure(services, ref, asked, say)
        with space.sessions.begin() as session:
            record = measured.record(session)
        pictures = evaluations.keep(services, measured, record)
        found.append((record, [str(path) for path in pictures]))
    if as_json:
        emit([record.to_json() | {"pictures": pictures} for record, pictures in found])
        return
    for record, drawn in found:
        _print(record, drawn)
    ref = found[0][0].adapter
    task = ref.partition("@")[0]
    following(f"affinery report {quote(task)}", f"affinery compare {quote(ref)} OTHER")


def put_off(space: Workspace, asked: Chore, after: list[str] | None, as_json: bool) -> None:
    """A job of it, and what to do next."""
    from orchestration.chores import schedule

    job = schedule(space.sessions, asked, after=after or (), submitted_by=submitter()).job
    if as_json:
        emit(job.to_json(here=True))
    else:
        fields([("job", f"{job.number} ({job.id})"), ("kind", job.kind)])
        following("affinery run", f"affinery job show {job.number}")


def evaluations(
    ref: Annotated[
        str,
        typer.Argument(
            help="An adapter: a task's latest by its name, name@version, an alias.",
            autocompletion=completion.adapters,
        ),
    ],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was measured of an adapter, oldest first, each under its protocol."""
    with place(url, workspace) as where:
        found = where.evaluations(ref)
    if as_json:
        emit([record.to_json() for record in found])
        return
    rows = [
        (each.protocol_digest[:12], each.reference, f"{each.created_at:%Y-%m-%d}", _figures(each))
        for each in found
    ]
    empty = f"Nothing was measured of it. Measure it: affinery evaluate {quote(ref)}"
    table(["protocol", "against", "measured", "figures"], rows, empty)


def _figures(record: EvaluationRecord) -> list[str]:
    from registry.metrics import numbers

    return [f"{name} {number:.4g}" for name, number in numbers(record.results).items()]


def _print(record: EvaluationRecord, pictures: list[str]) -> None:
    from affinery_app.figures import figures

    how = record.protocol
    images = how["reference"]["images"]
    fields(
        [
            ("adapter", record.adapter),
            ("protocol", record.protocol_digest[:12]),
            ("measured", f"{how['samples']} samples against {images} images of {record.reference}"),
        ]
    )
    table(["figure", "value"], figures(record.results).items(), "")
    fields([*(("note", note) for note in record.results.get("notes", [])), ("pictures", pictures)])
    print()


def compare(
    left: Annotated[str, typer.Argument(help="An adapter.", autocompletion=completion.adapters)],
    right: Annotated[
        str, typer.Argument(help="Another, of any task or kind.", autocompletion=completion.adapters)
    ],
    protocol: Annotated[
        str | None,
        typer.Option(help="The first digits of a protocol's digest.", show_default="the newest both have"),
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the figures of two adapters side by side, if they were measured under one protocol."""
    with place(url, workspace) as where:
        found = where.compare(left, right, protocol)
    if as_json:
        emit(found)
        return
    fields([("protocol", found["protocol_digest"][:12])])
    pairs = [(name, each["left"], each["right"]) for name, each in found["figures"].items()]
    rows = [(name, f"{a:.4g}", f"{b:.4g}", f"{b - a:+.4g}") for name, a, b in pairs]
    table(["figure", found["left"], found["right"], "difference"], rows, "No figure is in both.")

"""affinery retention."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.evaluate import (
    ExtractorOption,
    LaterOption,
    SamplesOption,
    SeedOption,
    StepsOption,
    looks,
    put_off,
)
from affinery_app.cli.job_options import AfterOption
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.figures import size

if TYPE_CHECKING:
    from orchestration.chores import Retention
    from trainers.evaluation.continual import Matrix

BackboneArgument = Annotated[
    str, typer.Argument(help="The backbone: name, or name@version.", autocompletion=completion.backbones)
]


def chore_of(
    backbone: str, samples: int | None, seed: int, steps: int | None, extractor: str | None
) -> Retention:
    """What is asked for. Raises JobInvalid."""
    from orchestration.chores import Retention, read

    given = {"backbone": backbone, "samples": samples, "seed": seed, "steps": steps}
    return read(Retention, given | {"extractor": looks(extractor)})


def retention(
    backbone: BackboneArgument,
    samples: SamplesOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    extractor: ExtractorOption = None,
    later: LaterOption = False,
    after: AfterOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every task after every addition to a backbone: what was learnt, and what was forgotten."""
    from affinery.errors import ConfigInvalid
    from affinery_app.wiring import open_workspace
    from orchestration import retention as measuring

    asked = chore_of(backbone, samples, seed, steps, extractor)
    space = open_workspace(workspace)
    if later:
        put_off(space, asked, after, as_json)
        return
    if after:
        raise ConfigInvalid("--after", "only a job waits for others; add --later.")
    services = space.services()
    found = measuring.measure(services, asked, lambda done, of, what: say(f"{done + 1} of {of}: {what}"))
    with space.sessions.begin() as session:
        found.record(session)
    kept = measuring.Kept(services.evaluations, found.backbone)
    kept.write(found)
    kept.tell(services.tracking, found)
    if as_json:
        emit(found.to_json() | {"picture": str(kept.picture)})
        return
    for matrix in filter(None, (found.matrix, found.recognition)):
        _print(matrix)
        print()
    table(
        ["adapter", "size", "parameters", "steps", "seconds"],
        [
            (
                cost.adapter,
                size(cost.size_bytes),
                f"{cost.parameters:,}",
                cost.steps,
                None if cost.seconds is None else round(cost.seconds),
            )
            for cost in found.costs.values()
        ],
        "",
    )
    print()
    fields([("picture", kept.picture)])
    following(*(f"affinery report {quote(task)}" for task in found.matrix.tasks))


def _print(matrix: Matrix) -> None:
    better = "more is better" if matrix.more_is_better else "less is better"
    print(f"{matrix.figure} after each stage ({better}); on average {matrix.average:.4g} at the end")

    def cells(row: Iterable[float | None]) -> list[str]:
        return ["" if value is None else f"{value:.4g}" for value in row]

    tasks = matrix.tasks
    table(
        ["stage", *tasks],
        [
            ("step 0", *cells(matrix.before)),
            *((stage, *cells(row)) for stage, row in zip(matrix.stages, matrix.rows, strict=True)),
            ("forgotten, first − last", *cells(map(matrix.forgotten_since_first, tasks))),
            ("forgotten, max − last", *cells(map(matrix.forgotten_since_best, tasks))),
            ("learnt since step 0", *cells(map(matrix.learnt, tasks))),
        ],
        "",
    )

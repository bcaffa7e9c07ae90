"""affinery retention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli.evaluate import ExtractorOption, SamplesOption, SeedOption, StepsOption
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, size, table

if TYPE_CHECKING:
    from trainers.evaluation.continual import Matrix


def retention(
    backbone: Annotated[str, typer.Argument(help="The backbone: name, or name@version.")],
    samples: SamplesOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    extractor: ExtractorOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every task after every addition to a backbone: what was learnt, and what was forgotten."""
    from affinery_app.cli.evaluate import chore_of
    from affinery_app.wiring import open_workspace
    from orchestration import retention as measuring
    from trainers.evaluation.judging import Measuring

    asked = chore_of([backbone], samples, seed, steps, None, extractor, None)
    usual = Measuring()
    how = Measuring(asked.samples or usual.samples, asked.seed, asked.extractor or usual.extractor)
    space = open_workspace(workspace)
    services = space.services()
    found = measuring.measure(services, backbone, how, asked.steps, say)
    folder = space.folder / "evaluations" / found.backbone.replace("@", "-")
    picture = measuring.keep(services, found, folder)
    if as_json:
        emit(found.to_json() | {"picture": str(picture)})
        return
    for matrix in filter(None, (found.matrix, found.recognition)):
        _print(matrix)
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
    fields([("picture", picture)])
    following(*(f"affinery report {task}" for task in found.matrix.tasks))


def _print(matrix: Matrix) -> None:
    better = "more is better" if matrix.more_is_better else "less is better"
    print(f"{matrix.figure} after each stage ({better})")

    def cells(row: tuple[float | None, ...]) -> list[str]:
        return ["" if value is None else f"{value:.4g}" for value in row]

    tasks = matrix.tasks
    table(
        ["stage", *tasks],
        [
            ("step 0", *cells(matrix.before)),
            *((stage, *cells(row)) for stage, row in zip(matrix.stages, matrix.rows, strict=True)),
            ("forgotten, first − last", *(f"{matrix.forgotten_since_first(task):.4g}" for task in tasks)),
            ("forgotten, max − last", *(f"{matrix.forgotten_since_best(task):.4g}" for task in tasks)),
        ],
        "",
    )

"""affinery demo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli.ending import going_on
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, printable, say, table
from affinery_app.figures import size

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from registry.records import AdapterRecord, ExportRecord

EACH = 6


def demo(
    workspace: WorkspaceOption = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps; fewer is faster and worse.", show_default="the backbone's advice"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Learn three real datasets on one frozen backbone, and draw from all of them with one model."""
    from affinery_app import demo as job
    from affinery_app.cli.progress import Screen, bar
    from affinery_app.wiring import create_workspace, locked

    began = time.monotonic()
    with step("1/6  workspace"):
        space, new = create_workspace(workspace)
        space.tracking.prepare()
    say(f"     {space.folder} ({'new' if new else 'going on with what is there'})")
    with locked(space.folder), going_on():
        with step("2/6  backbone"):
            backbone, parameters = job.add_shipped_backbone(space)
        say(
            f"     {backbone.ref}: {parameters:,} parameters, frozen; fingerprint {backbone.digest[:12]}, "
            f"{backbone.num_classes} classes, null row {backbone.null_index}"
        )
        shipped = job.shipped_datasets()
        with step("3/6  datasets"), bar("adding datasets") as advance:
            datasets = []
            for done, name in enumerate(job.TASKS):
                advance(done, len(job.TASKS))
                datasets.append(job.add_shipped_dataset(space, shipped[name]))
        for record in datasets:
            say(
                f"     {record.ref}: {record.image_count:,} images of {len(record.classes)} classes, "
                f"dvc {record.dvc_md5[:12]}, {record.licence}"
            )
        with step("4/6  learning"):
            recipe: dict[str, Any] = {} if steps is None else {"steps": steps}
            job.schedule_tasks(space, recipe)
            say(f"     {' + '.join(job.TOGETHER)} together, then {' + '.join(job.AFTERWARDS)}, by Ray Train")
            with Screen() as screen:
                job.learn(space, screen)
        with step("5/6  composing and exporting"):
            export = job.ship(space)
        with step("6/6  drawing from the bundle, in a new process"):
            picture = space.folder / "samples.png"
            job.draw_afresh(space.exports / export.path, picture, EACH)
    result(space, job.learnt(space), export, parameters, str(picture), time.monotonic() - began, as_json)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says what is being done, and how long it took."""
    began = time.monotonic()
    say(title)
    yield
    say(f"     done in {time.monotonic() - began:.0f} s")


def result(
    space: Workspace,
    learnt: list[AdapterRecord],
    export: ExportRecord,
    parameters: int,
    picture: str,
    seconds: float,
    as_json: bool,
) -> None:
    """What came out: figures, lineage, paths, next commands."""
    from registry import lineage
    from registry.graph import tree
    from registry.metrics import recognition

    if as_json:
        emit(
            {
                "workspace": str(space.folder),
                "bundle": export.path,
                "picture": picture,
                "seconds": round(seconds, 1),
                "tasks": [
                    {"adapter": r.ref, "parameters": r.parameters, "metrics": r.metrics} for r in learnt
                ],
            }
        )
        return
    rows = []
    for record in learnt:
        seen = recognition(record.metrics)
        together = ", ".join(record.provenance.get("trained_with") or []) or "–"
        rows.append(
            (
                record.ref,
                f"{record.parameters:,} ({record.parameters / parameters:.1%})",
                together,
                f"{seen.share or 0:.1%} of {seen.samples or 0}",
                f"{seen.real_accuracy or 0:.1%}",
            )
        )
    say()
    table(
        ["adapter", "parameters", "learnt with", "recognised samples", "real images"],
        rows,
        "Nothing was learnt.",
    )
    say(
        "recognised: what a classifier of the real images takes for the class asked for; beside it, its\n"
        "accuracy on real images that were kept back."
    )
    with space.sessions.read() as session:
        node = lineage.resolve(session, f"export:{export.ref}")
        graph = lineage.ancestors(session, node.node_id)
    say()
    print(tree(graph, node.node_id, "up"))
    say()
    fields(
        [
            ("picture", picture),
            ("bundle", f"{export.path} ({size(export.size_bytes)})"),
            ("registry", space.registry_url),
            ("blobs", space.folder / "blobs"),
            ("data", f"{space.data} (DVC; remote {space.folder / 'dvc-remote'})"),
            ("mlflow", space.tracking.uri),
            ("runs", f"{space.runs} (checkpoints, pictures)"),
        ]
    )
    say(f"\n{seconds:.0f} s. Next:")
    option = "" if space.folder.name == "affinery-workspace" else f" -w {printable(quote(str(space.folder)))}"
    for command in (
        f"affinery lineage {quote(learnt[0].ref)}{option}",
        f"affinery adapter show {quote(learnt[-1].ref)}{option}",
        f"affinery sample {printable(quote(export.path))} --task digits --label 7 -n 10",
        f"mlflow ui --backend-store-uri {printable(quote(f'sqlite:///{space.folder}/mlflow/mlflow.db'))}",
    ):
        say(f"  {command}")

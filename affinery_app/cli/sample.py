"""affinery sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, say


def sample(
    source: Annotated[
        str,
        typer.Argument(
            help="A bundle's folder, or a composition in the registry.",
            autocompletion=completion.compositions,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The picture, a .png; folders on the way to it are made.")
    ] = Path("samples.png"),
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Only these tasks.", autocompletion=completion.tasks),
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Only these classes.")] = None,
    each: Annotated[int, typer.Option("-n", min=1, max=1000, help="Images a class.")] = 4,
    seed: Annotated[int, typer.Option(help="The first image's seed; the next ones count up.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="DDIM steps.", show_default="the backbone's advice")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; 1 is none.", show_default="the backbone's advice"),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The caption, for a backbone that takes captions.")
    ] = "",
    condition: Annotated[
        Path | None, typer.Option(help="What tasks with a condition are told: a picture of edges, of depth …")
    ] = None,
    condition_from: Annotated[
        Path | None, typer.Option(help="A picture whose edges are drawn, for tasks that are told edges.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one batch that mixes tasks and classes, and write it as a picture."""
    from affinery.errors import PlaceInvalid
    from affinery_app.cli.progress import bar
    from affinery_app.drawing import Telling, draw_grid, of_file, open_model

    if out.suffix.lower() != ".png":
        raise PlaceInvalid("--out", str(out), "does not end in .png, which is what is written", "")
    model = open_model(source, workspace)
    telling = Telling(prompt, of_file(condition), of_file(condition_from))
    with bar("drawing") as advance:
        drawn = draw_grid(model, out, task, label, each, seed, steps, guidance, advance, telling)
    if as_json:
        emit(drawn)
        return
    fields([("picture", drawn["picture"]), ("images", drawn["images"]), ("tasks", list(drawn["tasks"]))])
    say(f"one batch of {drawn['images']} images, guidance {drawn['guidance']:g}, {drawn['steps']} steps")

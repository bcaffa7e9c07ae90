"""Drawing from a model: which images one batch holds, and the picture they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from affinery.errors import UnknownName

if TYPE_CHECKING:
    from affinery.composed import ComposedModel

COLUMNS = 20


def open_model(source: str, workspace: Path | None) -> ComposedModel:
    """A bundle's folder where there is one of this name, else a composition of the registry."""
    from affinery.bundle import MANIFEST, load_bundle

    folder = Path(source)
    if (folder / MANIFEST).exists():
        return load_bundle(folder)
    from affinery_app.wiring import open_workspace
    from orchestration.additions import write_composition
    from registry import compositions

    space = open_workspace(workspace)
    with space.sessions.read() as session:
        record = compositions.get(session, source)
    with TemporaryDirectory() as scratch:
        target = Path(scratch) / "bundle"
        write_composition(space.sessions, space.store, record, target)
        return load_bundle(target)


def draw_grid(
    model: ComposedModel,
    out: Path,
    tasks: Sequence[str] | None,
    labels: Sequence[str] | None,
    each: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    """Draws `each` images of every class asked for in one batch, and writes them by task. → what was drawn

    Raises UnknownName where a task, or a class in every task asked for, does not exist.
    """
    from affinery import tensor_files
    from affinery.diffusion.sampling import Draw, default_settings, sample
    from trainers.pictures import png, tile, titled

    slots = [model.task(name) for name in (tasks or list(model.slots))]
    if not slots:
        raise UnknownName("task in this model", "any", ())
    every = {name for slot in slots for name in slot.meta.class_names}
    for label in labels or ():
        if label not in every:
            raise UnknownName("class", label, every)
    settings = default_settings(model, steps, guidance)
    draws: list[Draw] = []
    parts: list[tuple[str, int, int]] = []  # title, images, columns
    for slot in slots:
        wanted = [name for name in slot.meta.class_names if not labels or name in labels]
        if not wanted:
            continue
        first = len(draws)
        # A line of the picture holds every class once; few classes fill it several times.
        repeat = 1 if len(wanted) > 1 else each
        for i in range(each):
            draws += [
                Draw(slot.meta.task, slot.row(name), seed + first + i * len(wanted) + j)
                for j, name in enumerate(wanted)
            ]
        title = f"{slot.meta.task}: {', '.join(wanted)}"
        parts.append(
            (title if len(title) <= 90 else title[:89] + "…", len(draws) - first, len(wanted) * repeat)
        )
    images = sample(model, draws, settings, on_step)
    pictures, at = [], 0
    for title, count, columns in parts:
        pictures.append((title, tile(images[at : at + count], min(columns, COLUMNS))))
        at += count
    tensor_files.write_whole(out.absolute(), png(titled(pictures)))
    return {
        "picture": str(out.absolute()),
        "images": len(draws),
        "tasks": [slot.meta.task for slot in slots],
        "steps": settings.steps,
        "guidance": settings.guidance,
        "seed": seed,
    }

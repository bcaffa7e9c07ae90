"""Drawing from a model: which images one batch holds, and the picture they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery.errors import ConfigInvalid, UnknownName

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from affinery.composed import ComposedModel
    from affinery.diffusion.sampling import Draw, SamplerSettings
    from trainers.conditions import Maker

COLUMNS = 20


def open_model(source: str, workspace: Path | None) -> ComposedModel:
    """A bundle's folder where there is one of this name, else a composition of the registry."""
    return open_versions(source, workspace)[0]


def open_versions(source: str, workspace: Path | None) -> tuple[ComposedModel, dict[str, int]]:
    """The same, with the version of every task that says one."""
    from affinery.bundle import MANIFEST, load_bundle, read_manifest

    folder = Path(source)
    if (folder / MANIFEST).exists():
        refs = {str(task["name"]): str(task["ref"]) for task in read_manifest(folder).tasks}
        return load_bundle(folder), _numbers(refs)
    from affinery_app.wiring import open_workspace
    from orchestration.exports import composed
    from registry import adapters, compositions

    space = open_workspace(workspace)
    with space.sessions.read() as session:
        record = compositions.get(session, source)
        members = adapters.by_ids(session, record.member_ids)
    model = composed(space.sessions, space.store, record)
    return model, {member.task: member.version for member in members}


def _numbers(refs: Mapping[str, str]) -> dict[str, int]:
    """The versions in references like digits@3."""
    ends = {task: ref.rpartition("@")[2] for task, ref in refs.items()}
    return {task: int(end) for task, end in ends.items() if end.isascii() and end.isdigit() and len(end) < 10}


Picture = Callable[[int, int, bool], "np.ndarray"]
"""A side, channels and whether pixels may be blended → (C, side, side) bytes, a picture's middle square."""


def of_file(path: Path | None) -> Picture | None:
    from trainers.data import read_square

    return None if path is None else partial(read_square, path)


@dataclass(frozen=True)
class Telling:
    """What a batch is told. condition: a picture of it; made_from: one that it is drawn from."""

    prompt: str = ""
    condition: Picture | None = None
    made_from: Picture | None = None

    def to(self, model: ComposedModel, task: str) -> Tensor | None:
        """(C, H, W): what a task is told. Raises ConfigInvalid where it needs a picture that is not given."""
        import torch

        from trainers.data import as_unit

        record = model.task(task).meta.condition
        if record is None:
            return None
        size, channels = model.image_size(task), int(record["channels"])
        if self.condition is not None:
            pixels = self.condition(size, channels, record["name"] != "segmentation")
        elif self.made_from is not None:
            pixels = _edges(record)(self.made_from(size, model.spec.channels, True))
        else:
            other = ", or a picture that it is made from" if record["name"] == "canny" else ""
            raise ConfigInvalid("condition", f"{task!r} is told {record['name']}: give its map{other}.")
        return as_unit(torch.tensor(pixels))


def _edges(record: Mapping[str, Any]) -> Maker:
    """What draws the edges that a task is told. Raises ConfigInvalid for any other condition.

    The record stands in a file of others: no model is looked for by its word.
    """
    from trainers.conditions import HIGH, LOW, condition_record, maker

    low, high = record.get("low", LOW), record.get("high", HIGH)
    if record["name"] != "canny" or not all(type(threshold) is int for threshold in (low, high)):
        raise ConfigInvalid("condition", f"{record['name']} is not drawn from pictures here; give its map.")
    return maker(condition_record("canny", low, high))


NOTHING = Telling()


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
    telling: Telling = NOTHING,
) -> dict[str, Any]:
    """Draws `each` images of every class asked for in one batch, and writes them by task. → what was drawn

    Tasks of several resolutions take a batch each. Raises UnknownName where a task, or a class in every task
    asked for, does not exist.
    """
    import torch

    from affinery import tensor_files
    from affinery.diffusion.sampling import Draw, default_settings
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
    shown: dict[str, Tensor] = {}  # by title, the condition
    for slot in slots:
        wanted = [name for name in slot.meta.class_names if not labels or name in labels]
        if not wanted:
            continue
        first = len(draws)
        condition = telling.to(model, slot.meta.task)
        # A line of the picture holds every class once; few classes fill it several times.
        repeat = 1 if len(wanted) > 1 else each
        for i in range(each):
            draws += [
                Draw(
                    slot.meta.task,
                    slot.row(name),
                    seed + first + i * len(wanted) + j,
                    telling.prompt,
                    condition,
                )
                for j, name in enumerate(wanted)
            ]
        title = f"{slot.meta.task}: {', '.join(wanted)}" + (f" “{telling.prompt}”" if telling.prompt else "")
        title = title if len(title) <= 90 else title[:89] + "…"
        parts.append((title, len(draws) - first, len(wanted) * repeat))
        if condition is not None:
            shown[title] = condition
    images = _sampled(model, draws, settings, on_step)
    pictures, at = [], 0
    for title, count, columns in parts:
        if title in shown:
            pictures.append((f"{title.partition(':')[0]} is told", tile(shown[title][None], 1)))
        pictures.append((title, tile(torch.stack(images[at : at + count]), min(columns, COLUMNS))))
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


def _sampled(
    model: ComposedModel,
    draws: Sequence[Draw],
    settings: SamplerSettings,
    on_step: Callable[[int, int], None],
) -> list[Tensor]:
    """The images in the order of the draws, those of one resolution in one batch."""
    from affinery.diffusion.sampling import sample

    sizes = [model.image_size(draw.task) for draw in draws]
    drawn: dict[int, Tensor] = {}
    every = sorted(set(sizes))
    for turn, size in enumerate(every):
        own = [i for i, other in enumerate(sizes) if other == size]

        def advance(done: int, of: int, turn: int = turn) -> None:
            on_step(turn * of + done, len(every) * of)

        images = sample(model, [draws[i] for i in own], settings, advance)
        drawn |= dict(zip(own, images, strict=True))
    return [drawn[i] for i in range(len(draws))]

"""/new: schedule a new task: which images, on what, how large; what it would cost; then it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.orm import Session
from starlette.responses import Response

from affinery.adapters import kinds
from affinery.errors import ConfigInvalid, UserError, words_of
from affinery_app.api.problems import said_of
from affinery_app.dashboard.amounts import whole, wholes
from affinery_app.dashboard.datasets import sheet_of
from affinery_app.dashboard.visit import Visit, status_of
from affinery_app.wiring import Workspace
from orchestration.conditions import NONE, conditions_of
from orchestration.rehearsal import Rehearsal
from orchestration.scheduling import Wanted, schedule_all
from registry import backbones, datasets, pages, tasks
from registry.records import BackboneRecord, DatasetRecord
from trainers.conditions import CHANNELS
from trainers.errors import DatasetChanged
from trainers.packs import read_manifest

Record = TypeVar("Record", DatasetRecord, BackboneRecord)
CHOICE = 200
NUMBERS = ("steps", "batch", "seed")
OF_IMAGES = ("rank", "low", "high", "image_size")
BLANK = dict.fromkeys(("name", "dataset", "backbone", *OF_IMAGES, *NUMBERS), "")
USUAL = BLANK | {"kind": "affiner", "priority": "0", "condition": NONE}
LOOKED_INTO = 50_000  # images of a dataset beside which captions and maps are counted


def page(visit: Visit) -> Response:
    return _form(visit, dict(visit.request.query_params))


def _form(visit: Visit, filled: dict[str, str], wrong: str = "", status: int = 200) -> Response:
    with visit.space.sessions.read() as session:
        ids = pages.newest_of_kind(session, "dataset", None, CHOICE)
        found = [datasets.by_id(session, node_id) for node_id in ids]
        bases = backbones.list_all(session)[::-1][:CHOICE]
        try:
            found, chosen = _among(session, found, filled.get("dataset"), datasets.get)
            bases, base = _among(session, bases, filled.get("backbone"), backbones.get)
        except UserError as error:
            chosen, base, wrong, status = None, None, wrong or said_of(error), max(status, status_of(error))
        name = _free_name(session, chosen)
    return visit.answer(
        "new.html",
        status,
        datasets=found,
        backbones=bases,
        chosen=chosen,
        kinds=kinds(),
        conditions=[NONE, *CHANNELS],
        filled=USUAL
        | {"name": name}
        | filled
        | {"dataset": chosen.ref if chosen else "", "backbone": base.ref if base else ""},
        wrong=wrong,
        preview=_preview(visit.space, chosen, name),
    )


def _among(
    session: Session, newest: list[Record], ref: str | None, get: Callable[[Session, str], Record]
) -> tuple[list[Record], Record | None]:
    """What can be chosen, and what is: the newest where nothing is named. Raises NotFound …"""
    if not ref:
        return newest, newest[0] if newest else None
    chosen = get(session, ref)
    offered = list(newest)
    if chosen not in offered:
        offered.append(chosen)
    return offered, chosen


def _free_name(session: Session, dataset: DatasetRecord | None) -> str:
    """What a task of it may be called: as the dataset is, or that and a number."""
    if dataset is None:
        return ""
    known = {each.name for each in tasks.page(session, limit=CHOICE, containing=dataset.name)}
    names = (dataset.name, *(f"{dataset.name}-{number}" for number in range(2, CHOICE + 2)))
    return next((name for name in names if name not in known), dataset.name)


def _preview(space: Workspace, dataset: DatasetRecord | None, name: str) -> dict[str, Any] | None:
    if dataset is None:
        return None
    most = max(dataset.class_counts, default=1)
    counted = zip(dataset.classes, dataset.class_counts, strict=True)
    return {
        "dataset": dataset,
        "name": name,
        "sheet": sheet_of(space, dataset),
        "classes": [(name, count, count / most) for name, count in counted],
        "beside": _beside(space, dataset),
    }


def _beside(space: Workspace, dataset: DatasetRecord) -> list[str]:
    """What its images have beside their class, in words; nothing where they are not on this machine."""
    if dataset.image_count > LOOKED_INTO:
        return []
    try:
        images = read_manifest(space.data / dataset.dvc_path).images
    except DatasetChanged:
        return []
    captions = sum(image.text is not None for image in images)
    maps = sum(image.condition is not None for image in images)
    return [f"{count:,} with {what}" for count, what in ((captions, "a caption"), (maps, "a map")) if count]


def preview(visit: Visit) -> Response:
    """What is learnt from, as a part of the page."""
    with visit.space.sessions.read() as session:
        found = datasets.get(session, visit.asked("dataset"))
        name = _free_name(session, found)
    return visit.answer("live/preview.html", preview=_preview(visit.space, found, name))


def estimate(visit: Visit) -> Response:
    """What it would take; nothing is kept."""
    asked = dict(visit.request.query_params)
    rehearsal, wrong, notes = Rehearsal(words_of), "", list[str]()
    try:
        wanted, data = [_wanted(asked, visit.by)], visit.space.data
        schedule_all(visit.space.sessions, wanted, data=data, on_note=notes.append, rehearse=rehearsal)
    except UserError as error:
        wrong = said_of(error)
    job = rehearsal.jobs[0] if rehearsal.jobs else None
    template = "estimate.html" if asked.get("alone") else "live/estimate.html"
    return visit.answer(template, job=job, wrong=wrong, notes=notes, about=_about(asked.get("kind", "")))


def _about(kind: str) -> str:
    from affinery.kind_settings import about

    return about(kind) if kind in kinds() else ""


def schedule(visit: Visit) -> Response:
    """The task is registered and its training queued, in one transaction."""
    form = dict(visit.form)
    try:
        visit.check_tasks(form.get("name", ""))
        wanted = [_wanted(form, visit.by)]
        job = schedule_all(visit.space.sessions, wanted, data=visit.space.data)[0].job
    except UserError as error:
        return _form(visit, form, said_of(error), status_of(error))
    return visit.on_to("jobs", job.id, said="scheduled")


def _wanted(filled: dict[str, str], by: str) -> Wanted:
    """Raises ConfigInvalid."""
    for needed in ("name", "dataset", "backbone"):
        if not filled.get(needed):
            raise ConfigInvalid(needed, "it has to be given.")
    recipe, given = wholes(filled, *NUMBERS), wholes(filled, *OF_IMAGES)
    condition = [filled.get("condition") or NONE]
    return Wanted(
        (filled["name"],),
        (filled["dataset"],),
        filled["backbone"],
        (filled.get("kind") or USUAL["kind"],),
        {"rank": given["rank"]} if "rank" in given else {},
        recipe=recipe,
        conditions=tuple(conditions_of(condition, given.get("low"), given.get("high"), None)),
        image_size=given.get("image_size"),
        job={"priority": whole(filled, "priority") if filled.get("priority") else 0, "submitted_by": by},
    )

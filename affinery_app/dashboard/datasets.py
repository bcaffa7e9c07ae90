"""/datasets: what is learnt from; each with its classes and a sheet of images of every class."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse, Response

from affinery_app.dashboard.visit import HEADERS, Visit, address
from affinery_app.demo import add_shipped_dataset, shipped_datasets
from affinery_app.wiring import Workspace
from registry import datasets, pages
from registry.errors import NotFound
from registry.records import DatasetRecord

A_PAGE = 50


def listing(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        ids = pages.newest_of_kind(session, "dataset", visit.number("before"), A_PAGE + 1)
        found = [datasets.by_id(session, node_id) for node_id in ids[:A_PAGE]]
    return visit.answer("datasets.html", datasets=found, more=ids[A_PAGE - 1] if len(ids) > A_PAGE else None)


def page(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        dataset = datasets.get(session, visit.named())
    most = max(dataset.class_counts, default=1)
    classes = [
        (name, count, count / most) for name, count in zip(dataset.classes, dataset.class_counts, strict=True)
    ]
    return visit.answer(
        "dataset.html", dataset=dataset, classes=classes, sheet=sheet_of(visit.space, dataset)
    )


def sheet_of(space: Workspace, dataset: DatasetRecord) -> str | None:
    """Where its sheet is shown; None where its images are not on this machine."""
    here = _drawn(space, dataset).exists() or (space.data / dataset.dvc_path).is_dir()
    return address("datasets", dataset.ref, "sheet.png") if here else None


def _drawn(space: Workspace, dataset: DatasetRecord) -> Path:
    return space.folder / "cache" / "sheets" / f"{dataset.digest}.png"


def sheet(visit: Visit) -> Response:
    """The contact sheet. A version never changes, and neither does its sheet: it is drawn once."""
    from affinery.tensor_files import write_whole
    from orchestration.datasets.contact_sheet import contact_sheet
    from orchestration.datasets.repository import ensure

    with visit.space.sessions.read() as session:
        dataset = datasets.get(session, visit.named())
    file = _drawn(visit.space, dataset)
    if not file.exists():
        pack = ensure(visit.space.data, dataset.dvc_path, dataset.digest)
        write_whole(file, contact_sheet(pack, dataset.name))
    kept = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(file, media_type="image/png", headers=HEADERS | kept)


def add_shipped(visit: Visit) -> Response:
    """One of those that come with Affinery."""
    known = shipped_datasets()
    name = visit.form.get("name", "")
    if name not in known:
        raise NotFound("shipped dataset", name, list(known))
    visit.check_tasks(name)
    added = add_shipped_dataset(visit.space, known[name])
    return visit.on_to("new", said="imported", dataset=added.ref)

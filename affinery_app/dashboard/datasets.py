"""/datasets: what is learnt from; each with its classes and a sheet of images of every class."""

from __future__ import annotations

from starlette.responses import FileResponse, Response

from affinery_app.dashboard.visit import HEADERS, Visit
from registry import datasets, pages

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
    return visit.answer("dataset.html", dataset=dataset, classes=classes)


def sheet(visit: Visit) -> Response:
    """The contact sheet. A version never changes, and neither does its sheet: it is drawn once."""
    from affinery.tensor_files import write_whole
    from orchestration.datasets.contact_sheet import contact_sheet
    from orchestration.datasets.repository import ensure

    with visit.space.sessions.read() as session:
        dataset = datasets.get(session, visit.named())
    file = visit.space.folder / "cache" / "sheets" / f"{dataset.digest}.png"
    if not file.exists():
        pack = ensure(visit.space.data, dataset.dvc_path, dataset.digest)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, contact_sheet(pack, dataset.name))
    kept = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(file, media_type="image/png", headers=HEADERS | kept)

"""/adapters: versions, searched by filter; one with all that is known of it; two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session
from starlette.responses import FileResponse, Response

from affinery.errors import UserError
from affinery_app.dashboard.losses import chart
from affinery_app.dashboard.pictures import SAMPLES, file_of, place, samples_in
from affinery_app.dashboard.visit import HEADERS, Visit
from affinery_app.figures import figures
from affinery_app.task_report import curve_of, pictures, place_of
from registry import (
    adapters,
    aliases,
    certificates,
    comparison,
    diff,
    evaluations,
    notes,
    retirement,
    runs,
    search,
    tags,
    tasks,
)
from registry.errors import NotFound, NotMeasured, ProtocolsDiffer
from registry.records import AdapterRecord

A_PAGE, RECIPE = 50, "recipe."


def listing(visit: Visit) -> Response:
    wanted, wrong = visit.asked("filter")[:2000], ""
    with visit.space.sessions.read() as session:
        try:
            found = search.search(session, wanted, before=visit.number("before"), limit=A_PAGE)
        except UserError as error:
            found, wrong = search.Page((), None), str(error)
        retired = retirement.of(session, [each.node_id for each in found.adapters])
    status = 422 if wrong else 200
    return visit.answer("adapters.html", status, found=found, wanted=wanted, wrong=wrong, retired=retired)


def page(visit: Visit) -> Response:
    space = visit.space
    with space.sessions.read() as session:
        adapter = adapters.get(session, visit.named())
        drawn = pictures(space, adapter, place_of(session, adapter))
        values: dict[str, Any] = {
            "adapter": adapter,
            "aliases": aliases.list_all(session, adapter_id=adapter.node_id),
            "proofs": certificates.list_for(session, f"adapter:{adapter.ref}"),
            "retired": retirement.of(session, [adapter.node_id]).get(adapter.node_id),
            "run": None if adapter.run_id is None else runs.by_id(session, adapter.run_id),
            "tags": tags.of(session, adapter.node_id),
            "note": notes.of(session, adapter.node_id),
            "measured": [
                (each, figures(each.results)) for each in evaluations.latest_of(session, adapter.node_id)
            ],
            "others": search.search(
                session, f"task={tasks.by_id(session, adapter.task_id).digest}", limit=20
            ).adapters,
        }
    return visit.answer(
        "adapter.html",
        **values,
        figures=figures(adapter.metrics),
        pictures=[(name, place(adapter, name)) for name in sorted(drawn, key=lambda name: name != SAMPLES)],
        losses=chart({adapter.ref: curve_of(space, adapter)}),
        tracked=tracked(visit, adapter.mlflow_run_id),
    )


def tracked(visit: Visit, run: str | None) -> str | None:
    """Where MLflow shows a run; None where it serves no pages."""
    uri = visit.space.settings.tracking_uri or ""
    if run is None or not uri.startswith(("http://", "https://")):
        return None
    return f"{uri.rstrip('/')}/#/experiments/0/runs/{run}"


def picture(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        adapter = adapters.get(session, visit.named())
        file = file_of(visit.space, session, adapter, visit.named("name"))
    if file is None:
        raise NotFound("picture", visit.named("name"), [])
    return FileResponse(
        file, media_type="image/png", headers=HEADERS | {"Cache-Control": "private, max-age=60"}
    )


def compare(visit: Visit) -> Response:
    """Two versions: what both drew, their losses, figures under one protocol, what differs."""
    left, right = visit.asked("left").strip(), visit.asked("right").strip()
    with visit.space.sessions.read() as session:
        choice = [each.ref for each in search.search(session, limit=A_PAGE).adapters]
        found, compared, why, against, curves, samples = None, None, "", None, {}, []
        if left and right:
            found = diff.diff(session, left, right)
        if found is not None and found.kind == "adapter":
            try:
                compared = comparison.compare(session, found.left.ref, found.right.ref)
            except (NotMeasured, ProtocolsDiffer) as error:
                why = str(error)
                against = error.args[3] if isinstance(error, ProtocolsDiffer) else None
            sides = [adapters.get(session, each.ref) for each in (found.left, found.right)]
            curves = {each.ref: curve_of(visit.space, each) for each in sides}
            samples = _samples(visit, session, sides, compared)
    return visit.answer(
        "compare.html",
        left=left,
        right=right,
        choice=choice,
        found=found,
        sections={} if found is None else _sections(found, compared),
        compared=compared,
        why=why,
        against=against,
        samples=samples,
        losses=chart(curves),
    )


def _samples(
    visit: Visit, session: Session, sides: Sequence[AdapterRecord], compared: comparison.Comparison | None
) -> list[tuple[str, str | None]]:
    """What both drew, by version: under the protocol that they share where that is there, else what there is.

    None for a version of which no samples are on this machine.
    """
    drawn = [pictures(visit.space, each, place_of(session, each)) for each in sides]
    names = [SAMPLES]
    if compared is not None:
        names.insert(0, f"samples (protocol {compared.left.protocol_digest[:12]})")
    alike = next((name for name in names if all(name in held for held in drawn)), None)
    shown = [(each, alike or samples_in(held)) for each, held in zip(sides, drawn, strict=True)]
    return [(each.ref, None if name is None else place(each, name)) for each, name in shown]


def _sections(
    found: diff.Difference, compared: comparison.Comparison | None
) -> dict[str, tuple[diff.Change, ...]]:
    """What differs, the recipe apart from other provenance; figures that stand above are left out."""
    told = "" if compared is None else f"@{compared.left.protocol_digest[:12]}"
    sections: dict[str, tuple[diff.Change, ...]] = {}
    for name, changes in found.sections.items():
        if name == "provenance":
            sections["recipe"] = tuple(each for each in changes if each.path.startswith(RECIPE))
            changes = tuple(each for each in changes if not each.path.startswith(RECIPE))
        if name == "evaluations" and told:
            changes = tuple(each for each in changes if not each.path.endswith(told))
        sections[name] = changes
    return sections


def alias(visit: Visit) -> Response:
    """Point an alias at this version."""
    _check_task(visit)
    name = visit.form.get("other") or visit.form.get("alias", "")
    with visit.space.sessions.begin() as session:
        aliases.point(session, name, adapters.get(session, visit.named()).ref)
    return visit.on_to("adapters", visit.named(), said="aliased")


def retire(visit: Visit) -> Response:
    _check_task(visit)
    with visit.space.sessions.begin() as session:
        retirement.retire(session, visit.named(), visit.form.get("reason", ""))
    return visit.on_to("adapters", visit.named(), said="retired")


def restore(visit: Visit) -> Response:
    _check_task(visit)
    with visit.space.sessions.begin() as session:
        retirement.restore(session, visit.named())
    return visit.on_to("adapters", visit.named(), said="restored")


def _check_task(visit: Visit) -> None:
    with visit.space.sessions.read() as session:
        task = adapters.get(session, visit.named()).task
    visit.check_tasks(task)

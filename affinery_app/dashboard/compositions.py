"""/compositions: tasks put together, and the bundles that were written of them, to be taken away."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

from starlette.responses import Response

from affinery.errors import AffineryError, ConfigInvalid
from affinery.merge_recipe import LARGEST, Weight, in_words
from affinery_app.api.problems import said_of
from affinery_app.dashboard.amounts import number
from affinery_app.dashboard.visit import Visit, status_of
from orchestration import chores, exports
from orchestration.composing import Sum, compose_tasks
from orchestration.tracking import compositions as tracked
from registry import adapters, compositions, pages, retirement, search
from registry import exports as written_exports
from registry.records import AdapterRecord

A_PAGE, CHOICE = 50, 100


def listing(visit: Visit) -> Response:
    return _listing(visit)


def _listing(visit: Visit, wrong: str = "", status: int = 200) -> Response:
    """wrong: why what was filled in could not be done; it stays filled in."""
    with visit.space.sessions.read() as session:
        ids = pages.newest_of_kind(session, "composition", visit.number("before"), A_PAGE + 1)
        found = [compositions.by_id(session, node_id) for node_id in ids[:A_PAGE]]
        newest: dict[int, AdapterRecord] = {}
        for each in search.search(session, "state=usable", limit=CHOICE).adapters:
            newest.setdefault(each.task_id, each)
    choice = sorted(newest.values(), key=attrgetter("ref"))
    last = max(choice, key=attrgetter("node_id"), default=None)
    fitting = [each.ref for each in choice if last is not None and each.backbone_id == last.backbone_id]
    return visit.answer(
        "compositions.html",
        status,
        compositions=found,
        more=ids[A_PAGE - 1] if len(ids) > A_PAGE else None,
        choice=choice,
        ticked=visit.chosen.get("member", []) if wrong else fitting,
        filled=visit.form,
        wrong=wrong,
    )


def page(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        found = compositions.get(session, visit.named())
        members = adapters.by_ids(session, found.member_ids)
        retired = retirement.of(session, found.member_ids)
        written = written_exports.list_all(session, composition_id=found.node_id)[::-1]
    here = {each.ref: Path(each.path).exists() for each in written}
    sums = {raw["name"]: in_words(raw["of"], found.members) for raw in found.recipe.get("merges", ())}
    return visit.answer(
        "composition.html",
        composition=found,
        members=members,
        sums=sums,
        retired=retired,
        exports=written,
        here=here,
        formats=exports.formats(),
        tasks=[*(each.task for each in members), *sums],
    )


def compose(visit: Visit) -> Response:
    """The members that were ticked, and their weighted sum where one is wanted."""
    members = visit.chosen.get("member", [])
    try:
        sums = [_sum(visit, members)] if visit.form.get("merge") == "yes" else []
        made = compose_tasks(visit.space.sessions, visit.form.get("name", ""), members, sums)
    except AffineryError as error:
        return _listing(visit, said_of(error), status_of(error))
    tracked.tell(visit.space.tracking, visit.space.sessions, made)
    return visit.on_to("compositions", made.ref, said="composed")


def _sum(visit: Visit, members: list[str]) -> Sum:
    """By what stands beside each member; one without a weight is no part of it. Raises ConfigInvalid."""
    given = [ref for ref in members if visit.form.get(f"weight of {ref}")]
    if not given:
        raise ConfigInvalid("weight", "a sum needs the weight of one member or more.")
    weights = {ref: Weight(number(visit.form, f"weight of {ref}", LARGEST)) for ref in given}
    return Sum(weights, visit.form.get("sum") or None)


def export(visit: Visit) -> Response:
    """A job that writes a bundle, or another format."""
    asked = chores.read(
        chores.Export,
        {
            "composition": visit.named(),
            "format": visit.form.get("format") or exports.BUNDLE,
            "task": visit.form.get("task") or None,
            "unverified": visit.form.get("unverified") == "yes",
            "backbone": visit.form.get("bare") != "yes",
        },
    )
    return visit.scheduled(asked)

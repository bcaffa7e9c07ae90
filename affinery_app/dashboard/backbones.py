"""/backbones: what is frozen, who owns which class rows on it, what it remembers, and how it is followed."""

from __future__ import annotations

from starlette.responses import Response

from affinery.errors import ConfigInvalid
from affinery_app.dashboard.class_map import COLOURS, MOST_ROWS, class_map
from affinery_app.dashboard.visit import Visit
from affinery_app.demo import BACKBONE, add_shipped_backbone
from affinery_app.matrix import shown
from orchestration import chores, queue
from orchestration.jobs import LIVE
from orchestration.rebase import rebase as rebased
from orchestration.retention import newest as measured_last
from registry import backbones, search, tags, tasks

OWNERS, JOBS = 200, 50


def listing(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        found = backbones.list_all(session)[::-1]
    return visit.answer("backbones.html", backbones=found, shipped=BACKBONE)


def page(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        backbone = backbones.get(session, visit.named())
        # Blocks are given out in the order in which tasks are added.
        owners = tasks.page(session, limit=OWNERS + 1, backbone_id=backbone.node_id)[::-1]
        others = [each for each in backbones.list_all(session) if each.node_id != backbone.node_id]
        held = tags.of(session, backbone.node_id)
        newest = search.search(session, f"backbone={backbone.digest}", limit=1).adapters
        remembered = measured_last(session, backbone)
        measuring = queue.page(session, kinds=[chores.Retention.KIND], states=LIVE, limit=JOBS)
    left_out = len(owners) > OWNERS
    owners = owners[1:] if left_out else owners
    measured_at, found = (None, None) if remembered is None else remembered
    told = None if found is None else found.to_json()
    return visit.answer(
        "backbone.html",
        backbone=backbone,
        owners=[(f"c{i % COLOURS}", task) for i, task in enumerate(owners)],
        left_out=left_out or bool(owners and owners[-1].block[1] > MOST_ROWS),
        map=class_map(backbone, owners),
        matrices=shown(told),
        retention=told,
        measured_at=measured_at,
        outdated=bool(measured_at and newest and newest[0].created_at > measured_at),
        learnt=bool(newest),
        measuring=[job for job in measuring if job.backbone_id == backbone.node_id],
        others=others,
        tags=held,
    )


def rebase(visit: Visit) -> Response:
    """What would become of each task on another backbone; nothing is written."""
    new = visit.asked("to")
    if not new:
        raise ConfigInvalid("to", "name the backbone that the tasks are to be learnt on.")
    plan = rebased(visit.space.sessions, visit.space.store, visit.named(), new, dry_run=True)
    return visit.answer("rebase.html", plan=plan)


def start_rebase(visit: Visit) -> Response:
    """A job that does it, for the tasks that were ticked."""
    only = visit.chosen.get("only", [])
    if not only:
        raise ConfigInvalid("only", "tick one task or more.")
    asked = chores.read(
        chores.Rebase,
        {
            "old": visit.named(),
            "new": visit.form.get("to", ""),
            "only": only,
            "warm": visit.form.get("warm") == "yes",
        },
    )
    return visit.scheduled(asked)


def add_shipped(visit: Visit) -> Response:
    """The one that comes with Affinery."""
    added, _ = add_shipped_backbone(visit.space)
    return visit.on_to("backbones", added.ref, said="added")

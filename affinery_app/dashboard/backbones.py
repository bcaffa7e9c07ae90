"""/backbones: what is frozen, who owns which class rows on it, what it remembers, and how it is followed."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from affinery.errors import ConfigInvalid
from affinery_app.charts import heat_table
from affinery_app.dashboard.class_map import COLOURS, MOST_ROWS, class_map
from affinery_app.dashboard.visit import Visit
from affinery_app.demo import BACKBONE, add_shipped_backbone
from affinery_app.task_report import retention
from orchestration import chores
from orchestration.rebase import rebase as rebased
from registry import backbones, tags, tasks

OWNERS = 200


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
    left_out = len(owners) > OWNERS
    owners = owners[1:] if left_out else owners
    return visit.answer(
        "backbone.html",
        backbone=backbone,
        owners=[(f"c{i % COLOURS}", task) for i, task in enumerate(owners)],
        left_out=left_out or bool(owners and owners[-1].block[1] > MOST_ROWS),
        map=class_map(backbone, owners),
        matrices=_matrices(retention(visit.space, backbone.ref)),
        others=others,
        tags=held,
    )


def _matrices(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """As `affinery retention` measured them, drawn."""
    if found is None:
        return []
    listed = []
    for matrix in filter(None, (found, found.get("recognition"))):
        rows = [("step 0", matrix["step_0"]), *zip(matrix["stages"], matrix["matrix"], strict=True)]
        listed.append(
            {
                "figure": matrix["figure"],
                "better": "more is better" if matrix["more_is_better"] else "less is better",
                "average": matrix["average"],
                "table": heat_table(rows, matrix["tasks"], "after"),
                "forgotten": [(task, matrix["forgetting_max_last"][task]) for task in matrix["tasks"]],
            }
        )
    return listed


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
    job = chores.schedule(visit.space.sessions, asked, submitted_by=visit.by).job
    return visit.on_to("jobs", job.id, said="scheduled")


def add_shipped(visit: Visit) -> Response:
    """The one that comes with Affinery."""
    added, _ = add_shipped_backbone(visit.space)
    return visit.on_to("backbones", added.ref, said="added")

"""/tasks: what is learnt, each with its samples, losses, figures, proofs, and what can be done with it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from affinery_app.charts import line_chart
from affinery_app.dashboard.amounts import wholes
from affinery_app.dashboard.losses import chart
from affinery_app.dashboard.pictures import place, samples_in
from affinery_app.dashboard.visit import Visit
from affinery_app.figures import figures
from affinery_app.task_report import TaskReport, gather
from orchestration import queue
from orchestration.scheduling import schedule_again
from registry import aliases, retirement, tasks
from registry.metrics import HEADLINES, numbers, recognition

A_PAGE, VERSIONS, JOBS = 50, 12, 8


def listing(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        wanted = visit.asked("q")[:200]
        found = tasks.page(session, before=visit.number("before"), limit=A_PAGE + 1, containing=wanted)
    more = found[A_PAGE - 1].node_id if len(found) > A_PAGE else None
    return visit.answer("tasks.html", tasks=found[:A_PAGE], more=more, wanted=wanted)


def page(visit: Visit) -> Response:
    report = gather(visit.space, visit.named(), newest=VERSIONS)
    task = report.task
    with visit.space.sessions.read() as session:
        jobs = queue.page(session, task=task.name, limit=JOBS)
        held = aliases.list_all(session, task=task.name)
        retired = retirement.of(session, [each.adapter.node_id for each in report.versions])
    versions = report.versions[::-1]
    drawn = [(each, samples_in(each.pictures)) for each in versions]
    shown = [(each, place(each.adapter, name)) for each, name in drawn if name is not None]
    return visit.answer(
        "task.html",
        task=task,
        report=report,
        versions=versions,
        aliases={
            each.adapter.ref: [alias.name for alias in held if alias.adapter_id == each.adapter.node_id]
            for each in versions
        },
        retired=retired,
        jobs=jobs,
        samples=shown[:2],
        losses=chart({each.adapter.ref: each.curve for each in report.versions[-5:]}),
        classes=list(zip(task.classes, report.dataset.class_counts, strict=False)),
        recognised=_recognised(report),
        measured=[_measured(found) for found in report.evaluations.values()],
    )


def train(visit: Visit) -> Response:
    """Another version."""
    name = visit.named()
    visit.check_tasks(name)
    given = wholes(visit.form, "steps", "seed")
    older = () if visit.form.get("begin") == "warm" else None
    job = schedule_again(visit.space.sessions, [name], given, older, submitted_by=visit.by)
    return visit.on_to("jobs", job.id, said="scheduled")


def _recognised(report: TaskReport) -> list[tuple[str, float]]:
    """By class the share of samples that a classifier of real images takes for it, newest version first."""
    for version in reversed(report.versions):
        shares = recognition(version.adapter.metrics).by_class
        if shares and len(shares) == len(report.task.classes):
            return list(zip(report.task.classes, shares, strict=True))
    return []


def _measured(found: list[Any]) -> dict[str, Any]:
    """The figures of one protocol over versions, and the headline as a line."""
    listed = [(each.adapter, figures(each.results)) for each in found]
    names = list(dict.fromkeys(name for _, held in listed for name in held))
    values = [(int(each.adapter.rpartition("@")[2]), numbers(each.results)) for each in found]
    headline = next((name for name in values[0][1] if name.rpartition(".")[2] in HEADLINES), "")
    line = [(version, held[headline]) for version, held in values if headline in held]
    drawn = line_chart({headline: line}, "version", "", f"{headline} by version") if len(line) > 1 else ""
    return {"protocol": found[0], "names": names, "listed": listed, "chart": drawn}

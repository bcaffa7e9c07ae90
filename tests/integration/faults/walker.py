"""Publishes a finished checkpoint, each time in a process of its own that may be made to die on the way.

    python -m tests.integration.faults.walker        one JSON object a line in, one a line out

Everything that is in memory before a publication is made once and forked: a try costs a fork, not the start
of Python and torch. The child opens its own database and store; what it dies of is real.

    {"do": "prepare", "places": {…}, "job": …}
    {"do": "publish", "places": {…}, "job": …, "failpoint": "row:2=kill"}
    {"do": "publish", "places": {…}, "job": …, "room_bytes": 9, "full_at": "uploaded"}
    {"do": "publish", "places": {…}, "job": …, "busy_seconds": 1}    for a locked database
    {"do": "continue", "pid": …}
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from orchestration import failpoints, publishing, queue, ray_train
from orchestration.kinds import train
from orchestration.kinds.contract import Attempt
from orchestration.planner import Share
from orchestration.services import Places
from orchestration.talk import Teller
from registry import session as database
from registry.columns import utc_now
from registry.records import TaskRecord

if TYPE_CHECKING:
    from affinery.composed import ComposedModel
    from trainers.plan import TrainingPlan

publishing.JUDGED_SAMPLES = 4  # how many are drawn is not what is tested


@dataclass(frozen=True)
class Ready:
    """One training up to its publication. Its record, and that of its equals, differs by registry only."""

    tasks: list[TaskRecord]
    plan: TrainingPlan
    model: ComposedModel
    results: list[publishing.Learnt]


def prepare(places: Places, job_id: str) -> Ready:
    services = places.open()
    with services.sessions.read() as session:
        job = queue.get(session, job_id)
    learners, plan = train.plan_of(services, job)
    folder = services.runs / job_id
    checkpoint = ray_train.finished_checkpoint(folder, plan)
    assert checkpoint is not None
    stage = publishing.stage_of(services, learners)
    fresh = train._read_adapters(checkpoint, plan)
    model = publishing.compose(services, stage, fresh)
    judged = {task.name: train._judge(model, plan, i) for i, task in enumerate(learners)}
    keys = {task.name: f"key of {task.name}" for task in learners}
    results = publishing.read_results(folder, checkpoint, learners, judged, fresh, keys)
    services.sessions.engine.dispose()  # a connection must not be shared with a child
    return Ready(learners, plan, model, results)


def publish(ready: Ready, places: Places, job_id: str) -> list[str]:
    """One attempt as a driver makes it: claimed from whoever had it, published. → what it published"""
    services = places.open()
    with services.sessions.begin() as session:
        before = [job.owner for job in queue.list_all(session, ["running"]) if job.owner]
        queue.owners_gone(session, before)
        queue.give_up(session)
        for dead in queue.list_all(session, ["dead"]):  # it was lost more often than is borne
            queue.retry(session, dead.id)
        session.execute(text("UPDATE job SET run_at = created_at"))  # nobody waits for a delay
        held = queue.claim(session, f"walker-{os.getpid()}")
    assert held is not None
    assert held.job.id == job_id
    attempt = Attempt(services, held, Share(1), Teller(lambda _: None))
    stage = publishing.stage_of(services, ready.tasks)
    published, _ = publishing.publish(
        attempt, ready.plan, stage, ready.model, ready.results, "affinery", utc_now()
    )
    return [record.ref for record in published]


def fill_disk(room_bytes: int, at: str | None) -> None:
    """No file may grow beyond this from a point on, or from now: as a full disk answers a write."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, resource.RLIM_INFINITY))

    if at is None:
        limit()
        return
    reach = failpoints.reach

    def reached(point: str) -> None:
        reach(point)
        if point == at:
            limit()

    failpoints.reach = reached


def child(ready: Ready, asked: dict[str, Any], said: Path) -> None:
    os.environ[failpoints.VARIABLE] = asked.get("failpoint", "")
    database.BUSY_SECONDS = asked.get("busy_seconds", database.BUSY_SECONDS)
    if "room_bytes" in asked:
        fill_disk(asked["room_bytes"], asked.get("full_at"))
    try:
        told: dict[str, Any] = {"published": publish(ready, Places(**asked["places"]), asked["job"])}
    except Exception as error:  # noqa: BLE001 - the test decides which one it should have been
        told = {"error": type(error).__name__, "text": str(error)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said.write_text(json.dumps(told))


def outcome(pid: int, said: Path) -> dict[str, Any]:
    """What became of a child: killed by a signal, stopped by one, or what it said."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"stopped": pid}
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    told: dict[str, Any] = json.loads(said.read_text())
    return told


def main() -> None:
    ready: Ready | None = None
    said: dict[int, Path] = {}
    folder = Path(tempfile.mkdtemp(prefix="affinery-walker-"))
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if asked["do"] == "prepare":
            ready = prepare(Places(**asked["places"]), asked["job"])
        elif asked["do"] == "publish":
            assert ready is not None
            path = folder / str(len(said))
            pid = os.fork()
            if pid == 0:
                child(ready, asked, path)
                os._exit(0)
            said[pid] = path
            answer = outcome(pid, path)
        else:
            os.kill(asked["pid"], signal.SIGCONT)
            answer = outcome(asked["pid"], said[asked["pid"]])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

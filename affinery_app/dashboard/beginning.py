"""What to do first in a workspace in which something is still lacking: the next of four steps."""

from __future__ import annotations

from dataclasses import dataclass

from affinery_app.wiring import Workspace
from orchestration import queue
from orchestration.jobs import LIVE
from registry import pages


@dataclass(frozen=True)
class Step:
    """why: what it is for; label, href: where pages do it; command: what does it without them."""

    why: str
    label: str
    href: str
    command: str


BACKBONE = Step(
    "First a frozen backbone, on which tasks are learnt: yours, or the small one that comes with Affinery.",
    "Add a backbone",
    "/backbones#add",
    "affinery backbone add FILE --name NAME",
)
DATASET = Step(
    "Next images to learn from: a folder for each class, or a set that comes with Affinery.",
    "Add a dataset",
    "/datasets#add",
    "affinery dataset add NAME FOLDER",
)
TASK = Step(
    "Next a task: a dataset that a backbone is to learn.",
    "Schedule a new task",
    "/new",
    "affinery task add NAME --dataset NAME --backbone NAME",
)
WORKER = Step(
    "A task is scheduled; a worker learns it. Start one where there is none.",
    "See the queue",
    "/jobs",
    "affinery worker",
)


def next_step(space: Workspace) -> Step:
    with space.sessions.read() as session:
        for kind, step in (("backbone", BACKBONE), ("dataset", DATASET)):
            if not pages.newest_of_kind(session, kind, None, 1):
                return step
        return WORKER if queue.page(session, states=LIVE, kinds=["train"], limit=1) else TASK

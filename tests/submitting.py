"""What a driver does with a submitted training, in a process of its own.

python -m tests.submitting unseen|stopped HTTP FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from orchestration import ray_train
from orchestration.cluster import Submitted
from orchestration.errors import RayUnavailable
from orchestration.planner import Share


def unseen(http: str, folder: Path) -> None:
    """It sees all of this machine; the plan is missing, as on storage that it does not mount."""
    channel = folder / "attempt-1"
    channel.mkdir(parents=True)
    submitted = Submitted(http, channel, Share(1))
    submitted.start()
    while submitted.is_alive():
        submitted.join(1.0)
    with pytest.raises(RayUnavailable, match="has to be on storage that the cluster mounts"):
        submitted.finished()


def stopped(http: str, folder: Path) -> None:
    """The first by the second that begins, the second by its own driver."""
    channels = [folder / f"attempt-{number}" for number in (1, 2)]
    for channel in channels:
        channel.mkdir(parents=True)
        os.mkfifo(channel / ray_train.PLAN)  # whoever reads it waits
    first, second = (Submitted(http, channel, Share(1)) for channel in channels)
    first.start()
    second.start()
    first.join(20)
    assert not first.is_alive()
    second.join(1)
    assert second.is_alive()
    second.end()
    second.join(20)
    assert not second.is_alive()


if __name__ == "__main__":
    {"unseen": unseen, "stopped": stopped}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))

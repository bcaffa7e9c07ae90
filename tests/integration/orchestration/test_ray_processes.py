"""Processes that are started ahead are the ones that a training gets; Ray gives no others their work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

# In a process of its own: a process has one Ray. The two actors ask for processes as Ray Train's do: the
# controller with what is handed on, the one that trains from within it, with our own variable beside that.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from orchestration import ray_processes
from orchestration.local_ray import LocalRay
from orchestration.ray_train import connect_ray

def look(names):
    return {"pid": os.getpid(), "has": [name for name in names if name in sys.modules]}

class Trains:
    def look(self, names):
        return look(names)

class Watches:
    def look(self, names):
        return look(names)
    def child(self, shared, names):
        import ray
        both = {"env_vars": shared | ray_processes.training()}
        return ray.get(ray.remote(num_cpus=0, runtime_env=both)(Trains).remote().look.remote(names))

def begun():
    return {int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat")}

here = LocalRay(2, 0)
try:
    before = begun()
    connect_ray(here.ready(), ahead=True)
    import ray
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    shared = get_env_vars_to_propagate()
    folder = here._folder
    until = time.monotonic() + 60
    while list(folder.glob(ray_processes.TOKEN + "*")) and time.monotonic() < until:
        time.sleep(0.1)
    ahead = begun() - before
    names = list(ray_processes.FOR_TRAINING)
    watches = ray.remote(num_cpus=0, runtime_env={"env_vars": shared})(Watches).remote()
    seen = [ray.get(watches.look.remote(names)), ray.get(watches.child.remote(shared, names))]
    print(json.dumps([{**one, "ahead": one["pid"] in ahead} for one in seen]))
finally:
    here.stop()
"""


def test_a_training_gets_the_processes_that_were_started_ahead_with_their_imports_done() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    watches, trains = json.loads(ended.stdout.splitlines()[-1])
    assert watches["ahead"]
    assert watches["has"] == ["ray.train.torch"]
    assert trains["ahead"]
    assert trains["has"] == ["ray.train.torch", "trainers.session", "timm.layers", "diffusers.schedulers"]

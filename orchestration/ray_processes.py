"""The processes of our own Ray: started, and their imports done, before a training asks for them.

Ray gives every actor a fresh process, never one that has run a task, and a training's actors import torch:
seconds, each time. Ray can be told what its processes import as they start (RAY_preload_python_modules: this
module's `preload`), and its raylet starts processes ahead for one job and one environment (PrestartWorkers).
A driver asks for its own while it waits for an order; they end with it.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from uuid import uuid4

from affinery.importing import IMPORTING

PRELOADED = "orchestration.ray_preload"
FOLDER = "AFFINERY_RAY_FOLDER"
"""The folder of a Ray of ours, in the environment of its processes."""
TRAINS = "AFFINERY_TRAINS"
"""In the environment of the one process that trains; it imports more than those that watch it."""
WATCHERS = 2
"""Ray Train's processes beside the one that trains: controller, and one where workers wait for others."""
TOKEN = "ahead-"  # noqa: S105 - a file that one process takes
KEPT_SECONDS = 24 * 3600
ANSWER_SECONDS = 10.0
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""glibc keeps what it has for the next step. By itself it gives every tensor of 32 MB or more back to the
system, and the next one is paid again page by page: up to a fifth of a step."""
FOR_WATCHING = ("ray.train.torch",)
FOR_TRAINING = ("ray.train.torch", "trainers.session", "timm.layers", "diffusers.schedulers")
AFTER_TRAINING = (
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "matplotlib.figure",
    "torchmetrics.image.fid",
    "trainers.evaluation.judging",
    "trainers.pictures",
    "trainers.replay",
)


def environment(folder: Path) -> dict[str, str]:
    """What Ray's own environment has to say for processes to import as they start. By name."""
    at_once = str(WATCHERS + 2)
    return {
        FOLDER: str(folder),
        "RAY_preload_python_modules": PRELOADED,
        "RAY_worker_maximum_startup_concurrency": at_once,
        "RAY_maximum_startup_concurrency": at_once,
        "RAY_num_workers_soft_limit": "16",  # what waits for its training is not ended meanwhile
    }


def imports(names: tuple[str, ...]) -> None:
    for name in names:
        with IMPORTING:
            import_module(name)


def make_ready(folder: Path, shared: dict[str, str], watchers: int) -> None:
    """Has the connected Ray, whose folder it is, start processes for a training of this job; waits for none.

    shared: the variables that Ray Train hands on to its processes. watchers: how many are started beside the
    one that trains. Each of them imports torch: one will need it, and nobody knows which; it pays while there
    is time. Raises what gRPC raises.
    """
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
    from ray.runtime_env import RuntimeEnv

    for _ in range(watchers):
        (folder / f"{TOKEN}{uuid4().hex}").touch()
    watching = RuntimeEnv(env_vars=shared).serialize()
    # Ray compares texts; an environment that was added to its parent's is written by its C++, without blanks.
    trains = json.dumps({"env_vars": shared | training()}, sort_keys=True, separators=(",", ":"))
    context = ray.get_runtime_context()
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    with init_grpc_channel(f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}") as channel:
        raylet = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        for number, environment in ((watchers, watching), (1, trains)):
            request = node_manager_pb2.PrestartWorkersRequest(
                language=common_pb2.Language.PYTHON,
                job_id=bytes.fromhex(context.get_job_id()),
                num_workers=number,
                keep_alive_duration_secs=KEPT_SECONDS,
            )
            request.runtime_env_info.serialized_runtime_env = environment
            raylet.PrestartWorkers(request, timeout=ANSWER_SECONDS)


def training() -> dict[str, str]:
    """The environment of the process that trains, beside what Ray Train hands on."""
    return {TRAINS: "1"} | ALLOCATOR


def preload() -> None:
    """What this process of Ray's will need, by its environment; nothing in one that no training asked for."""
    if os.environ.get(TRAINS):
        imports(FOR_TRAINING)
    elif os.environ.get("RAY_TRAIN_V2_ENABLED") and _told_ahead():
        imports(FOR_WATCHING)


def _told_ahead() -> bool:
    """Whether this process was started ahead. One that is started when it is needed only loses time here."""
    for token in Path(os.environ[FOLDER]).glob(f"{TOKEN}*"):
        try:
            token.unlink()
        except FileNotFoundError:  # another took it
            continue
        return True
    return False

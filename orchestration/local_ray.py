"""Ray on this machine, for one worker: in a process of its own, warm for every driver, gone with the worker.

    python -m orchestration.local_ray PARENT FOLDER CPUS GPUS UNTIL    writes its address; ends with its input

In a process of its own, because Ray ends a process whose Ray dies; so the worker only sees that it has to be
started again. Ray waits 30 s for its own processes, which is too short on a machine that does much else: the
keeper begins anew, in a clean process, until UNTIL (of the monotonic clock).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from orchestration import failpoints, ray_processes
from orchestration.errors import RayUnavailable

FOLDER = f"affinery-{os.getuid()}"
ADDRESS, LOG = "address", "log"
START_SECONDS = 180.0
RAYS_OWN_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05


class LocalRay:
    """The Ray of one worker. Nothing starts before `ready` is called."""

    def __init__(self, cpus: int, gpus: int) -> None:
        self.cpus, self.gpus = cpus, gpus
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def ready(self) -> str:
        """Starts Ray unless it runs, and waits for nothing. → the file in which its address will stand"""
        if self._process is None or self._process.poll() is not None:
            self._clear()
            self._folder = _new_folder()
            until = time.monotonic() + START_SECONDS
            arguments = [os.getpid(), self._folder, self.cpus, self.gpus, until]
            with (self._folder / LOG).open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "orchestration.local_ray", *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        assert self._folder is not None
        return str(self._folder / ADDRESS)

    def stop(self) -> None:
        """Ends Ray; nothing where it never ran."""
        if self._process is not None and self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        self._clear()

    def _clear(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _new_folder() -> Path:
    """A folder of this process; those of processes that are gone are removed. Short, for Ray's sockets."""
    base = Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()) / FOLDER  # noqa: S108
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise RayUnavailable("this machine", f"{base} is another user's")
    for old in base.iterdir():
        pid = old.name.partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=base))


def address_in(file: Path) -> str:
    """The address, once it stands there. Raises RayUnavailable where Ray did not start."""
    until = time.monotonic() + START_SECONDS + RAYS_OWN_SECONDS  # its last try may have just begun
    while not file.exists():
        if not file.parent.exists() or time.monotonic() > until:
            raise RayUnavailable("this machine", "it did not start")
        time.sleep(POLL_SECONDS)
    found = file.read_text(encoding="utf-8")
    if found.startswith("error: "):
        raise RayUnavailable("this machine", found.removeprefix("error: "))
    return found


def main() -> None:
    """The keeper's process: Ray's processes are its children, and end with it."""
    from affinery import tensor_files
    from orchestration.driver import end_with
    from orchestration.ray_train import prepare_environment

    parent, folder, cpus, gpus, until = sys.argv[1:]
    end_with(int(parent))
    prepare_environment(local=True)
    for name, value in ray_processes.environment(Path(folder)).items():
        os.environ.setdefault(name, value)
    os.environ.pop("RAY_TRAIN_V2_ENABLED", None)  # a training tells its processes; by it they know themselves
    target = Path(folder) / ADDRESS
    try:
        import ray

        context = ray.init(
            address="local",
            num_cpus=int(cpus),
            num_gpus=int(gpus),
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=OBJECT_BYTES,
            _temp_dir=tempfile.mkdtemp(prefix="r", dir=folder),
        )
        failpoints.reach("ray-started")
    except Exception as error:
        _end_children()
        if time.monotonic() < float(until):
            traceback.print_exc()
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - Ray leaves no half-started state behind
        tensor_files.write_whole(target, f"error: {error}".encode())
        raise
    tensor_files.write_whole(target, context.address_info["address"].encode())
    sys.stdin.buffer.read()
    ray.shutdown()


def _end_children() -> None:
    """What a start that failed has left: each process of Ray's, and what those have started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    for pid in below - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            continue


OBJECT_BYTES = 256 << 20
"""For Ray's own messages: data and checkpoints go through files."""

if __name__ == "__main__":
    main()

"""Ray on this machine, for one worker: in a process of its own, warm for every driver, gone with the worker.

    python -m orchestration.local_ray PARENT FOLDER CPUS GPUS     writes its address; ends with its input

In a process of its own, because Ray ends a process whose Ray dies; so the worker only sees that it has to be
started again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestration.errors import RayUnavailable

FOLDER = f"affinery-{os.getuid()}"
ADDRESS, LOG = "address", "log"
START_SECONDS = 180.0
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
            arguments = [os.getpid(), self._folder, self.cpus, self.gpus]
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
    until = time.monotonic() + START_SECONDS
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

    parent, folder, cpus, gpus = sys.argv[1:]
    end_with(int(parent))
    prepare_environment(local=True)
    # Processes that a driver has made ready for its training are not taken from it while it waits.
    os.environ.setdefault("RAY_num_workers_soft_limit", "16")
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
            _temp_dir=str(Path(folder) / "r"),
        )
    except BaseException as error:
        tensor_files.write_whole(target, f"error: {error}".encode())
        raise
    tensor_files.write_whole(target, context.address_info["address"].encode())
    sys.stdin.buffer.read()
    ray.shutdown()


OBJECT_BYTES = 256 << 20
"""For Ray's own messages: data and checkpoints go through files."""

if __name__ == "__main__":
    main()

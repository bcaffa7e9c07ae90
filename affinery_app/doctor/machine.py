"""This machine: its GPUs, disk and memory, and the packages that are installed on it."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from affinery_app.doctor.check import FAIL, OK, WARN, Check

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace

GIB = 1 << 30
LITTLE_DISK, NO_DISK = 10 * GIB, 1 * GIB
LITTLE_MEMORY, NO_MEMORY = 3 * GIB, 1 * GIB
"""A training of the smallest kind takes about two: Ray, and two processes with torch."""
LITTLE_SHARED = 64 << 20
SHOWN = ("torch", "torchvision", "ray", "mlflow", "dvc", "sqlalchemy", "diffusers", "timm")


def gpus(deep: bool) -> Iterator[Check]:
    """GPUs that the driver names, and whether torch is built for them. deep: torch computes on each."""
    from orchestration.environment import gpu_names

    named = gpu_names()
    if not named:
        yield Check("gpu", OK, "none: trainings use processors")
        return
    told = ", ".join(dict.fromkeys(named))
    told = f"{len(named)}: {told}" if len(named) > 1 else told
    if "+cpu" in _version("torch"):
        mend = "install the torch that is built for CUDA; docs/how-to/gpu-machine.md"
        yield Check("gpu", WARN, f"{told}, but torch {_version('torch')} is built without CUDA", mend)
    elif not deep:
        yield Check("gpu", OK, told)
    else:
        yield _computes(told)


def _computes(told: str) -> Check:
    import torch

    try:
        for i in range(torch.cuda.device_count()):
            torch.ones(8, device=f"cuda:{i}").sum().item()
    except RuntimeError as error:
        mend = "the driver has to be new enough for this torch (nvidia-smi)"
        return Check("gpu", FAIL, f"{told}: {str(error).splitlines()[0]}", mend)
    if not torch.cuda.is_available():
        mend = "the driver has to be new enough for this torch (nvidia-smi)"
        return Check("gpu", WARN, f"{told}, but torch {torch.__version__} does not reach it", mend)
    return Check("gpu", OK, f"{told}; torch {torch.__version__} computes on it")


def disk(space: Workspace) -> Iterator[Check]:
    """Room where the workspace lies, and where temporary files go."""
    devices = set()
    for what, folder in (("workspace", space.folder), ("temporary files", Path(tempfile.gettempdir()))):
        device = folder.stat().st_dev
        if device in devices:
            continue
        devices.add(device)
        free = shutil.disk_usage(folder).free
        state = FAIL if free < NO_DISK else WARN if free < LITTLE_DISK else OK
        mend = None if state == OK else "see what could go: affinery gc --dry-run"
        yield Check("disk", state, f"{free / GIB:.1f} GiB free for the {what}, in {folder}", mend)


def memory() -> Iterator[Check]:
    """What is free, or all that a container may use; and what processes share."""
    from orchestration.planner import machine

    whole = machine().memory_bytes
    free = min(_available(whole), whole)
    state = FAIL if free < NO_MEMORY else WARN if free < LITTLE_MEMORY else OK
    mend = None if state == OK else "end other programs, or let a worker take less: affinery worker --jobs 1"
    yield Check("memory", state, f"{free / GIB:.1f} of {whole / GIB:.1f} GiB free", mend)
    shared = Path("/dev/shm")  # noqa: S108 - where Linux keeps it
    if shared.is_dir() and (left := shutil.disk_usage(shared).free) < LITTLE_SHARED:
        mend = "give the container more: docker run --shm-size=1g"
        yield Check("memory", WARN, f"{left >> 20} MiB of /dev/shm are left, which Ray shares by", mend)


def _available(unknown: int) -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return unknown
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) << 10 if found else unknown


def packages(space: Workspace | None) -> Iterator[Check]:
    """Whether what is installed is what Affinery asks for, and what the workspace's settings need besides."""
    wrong = list(_unmet(_needed_extras(space)))
    if wrong:
        yield Check("packages", FAIL, "; ".join(wrong), "make venv, or pip install --upgrade affinery")
        return
    shown = ", ".join(f"{name} {_version(name)}" for name in SHOWN)
    own = _version("affinery")
    yield Check("packages", OK, f"affinery {own}, Python {platform.python_version()}, {shown}")


def _needed_extras(space: Workspace | None) -> set[str]:
    """The extras without which the settings cannot be followed."""
    if space is None:
        return set()
    team = space.registry_url.startswith("postgresql") or space.store_url.startswith("s3:")
    remote = (space.settings.ray_address or "").startswith(("http://", "https://"))
    return {"team"} if team or remote else set()


def _unmet(extras: set[str]) -> Iterator[str]:
    from packaging.requirements import Requirement

    for text in metadata.requires("affinery") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": e}) for e in ("", *extras)):
            continue
        found = _version(wanted.name)
        if found == "absent":
            yield f"{wanted.name} is not installed"
        elif not wanted.specifier.contains(found, prereleases=True):
            yield f"{wanted.name} {found} is installed, and {wanted.specifier} is needed"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"

"""In what environment something was trained: enough to say whether bits may be expected to be equal."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

NUMERIC = (
    "torch",
    "torchvision",
    "numpy",
    "diffusers",
    "timm",
    "safetensors",
    "ray",
    "mlflow",
    "dvc",
    "sqlalchemy",
)


@cache
def environment_fingerprint() -> dict[str, Any]:
    """Python, platform, processor, GPUs, the packages that compute, and a digest of all installed ones.

    `digest` is the SHA-256 of all other entries; `packages` that of the installed packages' versions.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "gpus": gpu_names(),
        "versions": {name: _version(name) for name in NUMERIC},
        "packages": _packages(),
        "threads": len(os.sched_getaffinity(0)),
    }
    text = json.dumps(found, sort_keys=True)
    return found | {"digest": hashlib.sha256(text.encode()).hexdigest()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _packages() -> str:
    """The digest of the environment itself: what a lock file would pin, as it is really installed."""
    installed = sorted(
        {
            f"{d.metadata['Name']}=={d.version}".lower()
            for d in distributions()
            if d.metadata["Name"] != "affinery"
        }
    )
    return hashlib.sha256("\n".join(installed).encode()).hexdigest()


def _processor() -> str:
    """The model and the vector extensions: they decide which kernels run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    vectors = sorted(flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx")))
    return f"{facts.get('model name', platform.machine())} [{' '.join(vectors)}]"


def gpu_names() -> list[str]:
    """The NVIDIA GPUs that the driver names, without loading torch for it."""
    return [
        line.partition(":")[2].strip()
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text().splitlines()
        if line.startswith("Model:")
    ]


@cache
def code_version() -> str:
    """The git commit that runs, '+changed' where files differ from it; without git, the package's version."""
    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is not None and (root / ".git").exists():
        try:
            commit = _git(git, root, "rev-parse", "HEAD")
            changed = _git(git, root, "status", "--porcelain", "--untracked-files=no")
        except (OSError, subprocess.SubprocessError):
            return f"affinery {_version('affinery')}"
        return f"git {commit}{'+changed' if changed else ''}"
    return f"affinery {_version('affinery')}"


def _git(program: str, root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [program, "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()

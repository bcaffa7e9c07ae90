"""The team set-up, started once from docker-compose.yml's own commands. It needs Linux and root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.compose_sockets import ask, copy_in

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Team:
    """What runs. addresses: what is published, by service."""

    folder: Path
    addresses: dict[str, str]

    def run(self, service: str, *argv: str) -> str:
        """A command in a service's container, as `docker compose exec` runs it. → its output"""
        done = ask(self.folder, do="exec", service=service, argv=list(argv))
        assert done["code"] == 0, f"{argv}: {done['stderr']}\n{done['stdout']}"
        return str(done["stdout"])

    def affinery(self, *argv: str) -> Any:
        """A command line of Affinery in the worker's container. → its JSON"""
        return json.loads(self.run("worker", "affinery", *argv, "--json"))

    def copy_in(self, source: Path, target: str) -> None:
        copy_in(self.folder, source, "worker", target)

    def kill(self, service: str) -> None:
        """Kills everything in a container outright; it is started anew."""
        ask(self.folder, do="kill", service=service)

    def until_healthy(self, service: str) -> dict[str, Any]:
        return ask(self.folder, do="wait", service=service)

    def secret(self, name: str) -> str:
        return str(json.loads((self.folder / "env.json").read_text())[name])


def can_start() -> bool:
    """Whether namespaces can be made here, and the programs of the images are there."""
    if sys.platform != "linux" or os.geteuid() or not (ROOT / ".venv/bin/weed").exists():
        return False
    if any(shutil.which(program) is None for program in ("unshare", "nsenter", "setpriv", "ip")):
        return False
    probe = ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "probe", "type", "bridge"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    if not can_start():
        pytest.skip("the team set-up is started by hand as root on Linux (x86-64), with network namespaces")
    folder = Path(tempfile.mkdtemp(prefix="affinery-team-", dir="/tmp"))
    command = [sys.executable, "-m", "scripts.compose_by_hand", "up", "--folder", str(folder)]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command, "--fresh-ports", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert line, process.communicate()[1]
        yield Team(folder, json.loads(line))
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.terminate()  # the second time it waits for nobody
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)

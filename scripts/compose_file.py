"""docker-compose.yml and the Dockerfile, read as a container engine reads them, as far as they are used here.

What is not understood is an error, never passed over: a file that is started by hand has to mean the same
there as under an engine.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"\$(?:\$|\{([A-Z][A-Z0-9_]*)(?:(:?[-?])([^}]*))?\})")
_DURATION = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")
_SIZE = re.compile(r"(\d+)(kb|mb|gb)")
_SERVICE = frozenset(
    {"build", "cap_add", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "environment"}
    | {"healthcheck", "image", "init", "ports", "profiles", "restart", "secrets", "security_opt"}
    | {"shm_size", "stop_grace_period", "user", "volumes"}
)


class NotUnderstood(Exception):
    """The file says something that cannot be started by hand."""


@dataclass(frozen=True)
class Healthcheck:
    """When a service counts as healthy. Times in seconds."""

    argv: tuple[str, ...]
    interval: float
    timeout: float
    retries: int
    start_period: float
    start_interval: float


@dataclass(frozen=True)
class Mount:
    """What is mounted where: a named volume, or a file of the checkout."""

    source: str
    target: str
    read_only: bool

    @property
    def is_volume(self) -> bool:
        return not self.source.startswith((".", "/"))


@dataclass(frozen=True)
class Service:
    """One service, every default filled in. needs: by service, the condition that is waited for."""

    name: str
    image: str
    built: bool
    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...] | None
    environment: dict[str, str]
    secrets: tuple[str, ...]
    mounts: tuple[Mount, ...]
    needs: dict[str, str]
    healthcheck: Healthcheck | None
    user: str | None
    capabilities: tuple[str, ...]
    new_privileges: bool
    restarts: bool
    grace_seconds: float
    ports: tuple[tuple[int, int], ...]
    shm_bytes: int
    profiles: tuple[str, ...]


@dataclass(frozen=True)
class ComposeFile:
    """The whole file. secrets: by name, the value that it has in this environment."""

    services: dict[str, Service]
    secrets: dict[str, str]
    volumes: tuple[str, ...]


@dataclass(frozen=True)
class Image:
    """What an image brings with it. files: by place in the container, the file of the checkout."""

    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    owned: tuple[str, ...] = ()


def read(path: Path, environment: Mapping[str, str], profiles: Sequence[str] = ()) -> ComposeFile:
    """The services of these profiles, with ${VARIABLES} taken from the environment. Raises NotUnderstood."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    filled = _filled({name: value for name, value in raw.items() if not name.startswith("x-")}, environment)
    services = {name: _service(name, entry) for name, entry in filled["services"].items()}
    secrets = {name: _secret(name, entry, environment) for name, entry in filled.get("secrets", {}).items()}
    chosen = {
        name: service
        for name, service in services.items()
        if not service.profiles or set(service.profiles) & set(profiles)
    }
    return ComposeFile(chosen, secrets, tuple(filled.get("volumes", {})))


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(entry, environment) for name, entry in value.items()}
    if isinstance(value, list):
        return [_filled(entry, environment) for entry in value]
    return _VARIABLE.sub(lambda found: _one(found, environment), value) if isinstance(value, str) else value


def _one(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    name, how, other = found[1], found[2] or "", found[3] or ""
    value = environment.get(name)
    if value is None or (not value and how.startswith(":")):
        if how.endswith("?") or not how:
            raise NotUnderstood(f"${{{name}}} is not set. {other}".strip())
        return other
    return value


def _secret(name: str, entry: Mapping[str, str], environment: Mapping[str, str]) -> str:
    if set(entry) != {"environment"}:
        raise NotUnderstood(f"The secret {name!r} does not come from the environment.")
    value = environment.get(entry["environment"], "")
    if not value:
        raise NotUnderstood(f"The secret {name!r} is empty: {entry['environment']} is not set.")
    return value


def _service(name: str, entry: Mapping[str, Any]) -> Service:
    if unknown := sorted(set(entry) - _SERVICE):
        raise NotUnderstood(f"{name}: {unknown[0]!r} is not known here.")
    return Service(
        name,
        entry["image"],
        "build" in entry,
        _words(entry.get("entrypoint")),
        _words(entry.get("command")),
        {variable: _plain(value) for variable, value in entry.get("environment", {}).items()},
        tuple(entry.get("secrets", [])),
        tuple(_mount(name, each) for each in entry.get("volumes", [])),
        {other: how["condition"] for other, how in entry.get("depends_on", {}).items()},
        _healthcheck(entry.get("healthcheck")),
        entry.get("user"),
        _capabilities(name, entry),
        "no-new-privileges:true" not in entry.get("security_opt", []),
        entry.get("restart", "no") != "no",
        _seconds(entry.get("stop_grace_period", "10s")),
        tuple(_port(name, each) for each in entry.get("ports", [])),
        _bytes(entry.get("shm_size", "64mb")),
        tuple(entry.get("profiles", [])),
    )


def _words(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(shlex.split(value)) if isinstance(value, str) else tuple(str(word) for word in value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        raise NotUnderstood(f"An environment variable is {value}: write it in quotation marks.")
    return str(value)


def _mount(name: str, value: Any) -> Mount:
    if isinstance(value, dict):
        if value["type"] != "volume":
            raise NotUnderstood(f"{name}: a mount of type {value['type']!r}.")
        return Mount(value["source"], value["target"], bool(value.get("read_only")))
    source, target, *rest = value.split(":")
    return Mount(source, target, rest == ["ro"])


def _capabilities(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    if entry.get("cap_drop") != ["ALL"]:
        raise NotUnderstood(
            f"{name} keeps capabilities: say cap_drop: [ALL], and cap_add those that it needs."
        )
    return tuple(entry.get("cap_add", []))


def _port(name: str, value: str) -> tuple[int, int]:
    address, outside, inside = value.split(":")
    if address != "127.0.0.1":
        raise NotUnderstood(f"{name} publishes {value}, which is not on 127.0.0.1.")
    return int(outside), int(inside)


def _healthcheck(entry: Mapping[str, Any] | None) -> Healthcheck | None:
    if entry is None:
        return None
    how, *argv = entry["test"]
    if how not in ("CMD", "CMD-SHELL"):
        raise NotUnderstood(f"A health check is of the kind {how!r}.")
    return Healthcheck(
        tuple(argv) if how == "CMD" else ("/bin/sh", "-c", *argv),
        _seconds(entry.get("interval", "30s")),
        _seconds(entry.get("timeout", "30s")),
        int(entry.get("retries", 3)),
        _seconds(entry.get("start_period", "0s")),
        _seconds(entry.get("start_interval", "5s")),
    )


def _seconds(value: str) -> float:
    found = _DURATION.fullmatch(value)
    if found is None or not value:
        raise NotUnderstood(f"{value!r} is no duration.")
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def _bytes(value: str) -> int:
    found = _SIZE.fullmatch(value)
    if found is None:
        raise NotUnderstood(f"{value!r} is no size.")
    return int(found[1]) << {"kb": 10, "mb": 20, "gb": 30}[found[2]]


def read_image(dockerfile: Path) -> Image:
    """What the last stage of a Dockerfile gives its containers; what it copies is of the checkout only."""
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    last = max(place for place, line in enumerate(lines) if line[0] == "FROM")
    values: dict[str, Any] = {"environment": {}, "files": {}, "owned": ()}
    for word, rest in lines[last + 1 :]:
        match word:
            case "ENV":
                values["environment"] |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "USER":
                values["user"] = rest
            case "WORKDIR":
                values["folder"] = rest
            case "ENTRYPOINT" | "CMD":
                values[word.lower().replace("cmd", "command")] = tuple(json.loads(rest))
            case "COPY" if not rest.startswith("--from"):
                *sources, target = rest.split()
                values["files"] |= {f"{target}{Path(source).name}": source for source in sources}
            case "RUN":
                values["owned"] += tuple(
                    place
                    for found in re.findall(r"install --directory([^&]*)", rest)
                    for place in found.split()
                    if place.startswith("/")
                )
            case _:
                continue
    return Image(**values)

"""Where a version of a dataset lies, and whether what lies there is what was pinned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestration.datasets import objects, repository
from orchestration.datasets.repository import Remote
from orchestration.errors import DatasetUnavailable
from registry.records import DatasetRecord
from trainers import packs
from trainers.errors import DatasetChanged

WHOLE, MISSING, CHANGED = "whole", "missing", "changed"
HELD, LACKING, DAMAGED, AWAY = "held", "lacking", "damaged", "away"


@dataclass(frozen=True)
class Place:
    """A remote's side. state: held, lacking, damaged, or away, with the reason.

    needed: it is the default one, which has every version; others have what was pushed to them.
    """

    remote: str
    needed: bool
    state: str
    reason: str = ""

    @property
    def sound(self) -> bool:
        return self.state == HELD or (self.state == LACKING and not self.needed)


@dataclass(frozen=True)
class State:
    """The pack's own: whole, missing or changed, with what differs; pinned: as the registry has it."""

    pack: str
    reason: str
    pinned: bool
    places: tuple[Place, ...]

    @property
    def sound(self) -> bool:
        return self.pack == WHOLE and self.pinned and all(place.sound for place in self.places)


def state_of(data: Path, record: DatasetRecord, *, remote: bool = True) -> State:
    """Reads every byte of a pack, and asks each remote (unless told not to) for its objects."""
    target = data / record.dvc_path
    pack, reason = WHOLE, ""
    if not all((target / name).exists() for name in (packs.IMAGES, packs.MANIFEST)):
        pack, reason = MISSING, "its files are not on this machine"
    else:
        try:
            packs.verify_pack(target, record.digest)
        except DatasetChanged as error:
            pack, reason = CHANGED, str(error.args[1])
    pinned = repository.pinned_md5(target) == record.dvc_md5
    asked = repository.remotes(data) if remote else []
    return State(pack, reason, pinned, tuple(_place(data, record, each) for each in asked))


def _place(data: Path, record: DatasetRecord, remote: Remote) -> Place:
    try:
        with repository.opened(data) as repo:
            store = repo.cloud.get_remote_odb(remote.name)
            found = objects.holding(store, record.dvc_md5, record.size_bytes)
    except DatasetUnavailable as error:
        return Place(remote.name, remote.default, AWAY, str(error.args[1]))
    if found.damaged:
        return Place(remote.name, remote.default, DAMAGED, f"{len(found.damaged)} of its objects are damaged")
    if found.missing:
        return Place(remote.name, remote.default, LACKING, "it does not have it, or not all of it")
    return Place(remote.name, remote.default, HELD)


def remotes_away(data: Path) -> dict[str, str | None]:
    """By remote, why it does not answer; None where it does. Raises DatasetUnavailable."""
    found: dict[str, str | None] = {}
    for remote in repository.remotes(data):
        try:
            with repository.opened(data) as repo:
                store = repo.cloud.get_remote_odb(remote.name)
                store.fs.exists(store.path)
            found[remote.name] = None
        except DatasetUnavailable as error:
            found[remote.name] = str(error.args[1])
    return found

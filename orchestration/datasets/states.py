"""Where a version of a dataset lies, and whether what lies there is what was pinned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestration.datasets import repository
from orchestration.errors import DatasetUnavailable
from trainers import packs
from trainers.errors import DatasetChanged

WHOLE, MISSING, CHANGED = "whole", "missing", "changed"
HELD, LACKING, NOWHERE, AWAY = "held", "lacking", "nowhere", "away"


@dataclass(frozen=True)
class Place:
    """A remote's side. state: held, lacking (but the cache has it), nowhere (nor has the cache), away."""

    remote: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class State:
    """The pack's own: whole, missing or changed, with what differs; pinned: as the registry has it."""

    pack: str
    reason: str
    pinned: bool
    places: tuple[Place, ...]

    @property
    def sound(self) -> bool:
        return self.pack == WHOLE and self.pinned and all(place.state == HELD for place in self.places)


def state_of(data: Path, dvc_path: str, digest: str, md5: str, *, remote: bool = True) -> State:
    """Reads every byte of a pack, and asks each remote (unless told not to) whether it has its objects.

    Asking deletes what is damaged in DVC's cache, as DVC does at every question.
    """
    target = data / dvc_path
    pack, reason = WHOLE, ""
    if not all((target / name).exists() for name in (packs.IMAGES, packs.MANIFEST)):
        pack, reason = MISSING, "its files are not on this machine"
    else:
        try:
            packs.verify_pack(target, digest)
        except DatasetChanged as error:
            pack, reason = CHANGED, str(error.args[1])
    pinned = repository.pinned_md5(data, dvc_path) == md5
    asked = repository.remotes(data) if remote and pinned else []
    return State(pack, reason, pinned, tuple(_place(data, dvc_path, each.name) for each in asked))


def _place(data: Path, dvc_path: str, remote: str) -> Place:
    file = str(repository.pin_file(data / dvc_path))
    try:
        with repository.serialised(data), repository.opened(data) as repo:
            told = set(repo.status(targets=[file], cloud=True, remote=remote).values())
    except DatasetUnavailable as error:
        return Place(remote, AWAY, str(error.args[1]))
    if "missing" in told:
        return Place(remote, NOWHERE)
    return Place(remote, LACKING if "new" in told else HELD)

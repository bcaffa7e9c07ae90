"""The versions of tasks that a server holds: a request names a task, or task@version, and is drawn with one.

A newer version of a task stands in the model beside the older one, in a slot and on class rows of its own, so
what is under way ends with the version it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from affinery.adapters.files import Adapter
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid, UnknownName
from affinery.merging import FIRST_ROW

KEPT = 2  # versions of a task: the newest, and the one before it


@dataclass(frozen=True)
class Version:
    """One version of a task. number: None of a sum, which has none; slot: what the model calls it."""

    task: str
    number: int | None
    slot: str

    @property
    def ref(self) -> str:
        return self.task if self.number is None else f"{self.task}@{self.number}"


class Versions:
    """Which slots of a model are which versions. It is changed between passes, and read at any time."""

    def __init__(self, model: ComposedModel, numbers: Mapping[str, int]) -> None:
        self._model = model
        self._held: dict[str, tuple[Version, ...]] = {
            name: (Version(name, numbers.get(name), name),) for name in model.slots
        }

    def of(self, task: str) -> tuple[Version, ...]:
        """A task's versions, the newest last; none where it is not held."""
        return self._held.get(task, ())

    def tasks(self) -> list[str]:
        return list(self._held)

    def find(self, ref: str) -> Version:
        """The version that a request means. Raises UnknownName."""
        held = self._held
        if ref in held:
            return held[ref][-1]
        task, _, _ = ref.rpartition("@")
        if task not in held:
            raise UnknownName("task in this model", ref, held)
        for version in held[task]:
            if version.ref == ref:
                return version
        raise UnknownName(f"version of {task!r} here", ref, [version.ref for version in held[task]])

    def take(self, adapter: Adapter, number: int) -> Version:
        """Loads a version that is newer than all of its task here. Where it raises, nothing has changed."""
        model, task = self._model, adapter.meta.task
        known = self.of(task)
        if known and (known[-1].number is None or known[-1].number >= number):
            raise ConfigInvalid("task", f"{known[-1].ref} is held already, and {task}@{number} is not newer.")
        version = Version(task, number, f"{task}@{number}" if known else task)
        first = max([FIRST_ROW, *(slot.meta.block[1] for slot in model.slots.values())])
        block = (first, first + len(adapter.meta.class_names))
        model.load(replace(adapter, meta=replace(adapter.meta, task=version.slot, block=block)))
        self._held = self._held | {task: (*known, version)}
        return version

    def superseded(self) -> list[Version]:
        """Those that are more than are kept."""
        return [version for held in self._held.values() for version in held[:-KEPT]]

    def drop(self, version: Version) -> None:
        """Takes a version out, once nothing is drawn with it any more."""
        self._model.unload(version.slot)
        left = tuple(other for other in self._held[version.task] if other is not version)
        self._held = self._held | {version.task: left}

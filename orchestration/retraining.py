"""Training tasks again for something new beneath them: what is done with each, and why not where not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from affinery.adapters.meta import read_meta
from affinery.errors import AdapterFileInvalid, ConfigInvalid, words_of
from orchestration.specs import spec_of
from registry import adapters
from registry.errors import NotFound, StorageError
from registry.records import AdapterRecord, BackboneRecord, TaskRecord
from registry.storage.contract import BlobStore

Action = Literal["schedule", "there", "refused"]
BUSY = ("scheduled", "learning", "paused")


@dataclass(frozen=True)
class Step:
    """What becomes of one task.

    learner: the task that is trained, the same or its successor. warm_start: the adapter to begin from;
    fresh: its tensors that do not fit, and are begun anew. job: once it is scheduled.
    """

    task: str
    learner: str
    action: Action
    reason: str
    warm_start: str | None = None
    fresh: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    job: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "task": self.task,
            "learner": self.learner,
            "action": self.action,
            "reason": self.reason,
            "warm_start": self.warm_start,
            "fresh": list(self.fresh),
            "job": self.job,
        }


def newest_in_use(session: Session, task: str) -> AdapterRecord | None:
    """The task's latest adapter version that is not retired."""
    try:
        return adapters.get(session, f"adapter:{task}")
    except NotFound:
        return None


def recipe_of(latest: AdapterRecord | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """How a task was trained last, as far as nothing else is given."""
    before = {} if latest is None else latest.provenance.get("recipe", {})
    known = _settings()
    return {name: value for name, value in before.items() if name in known} | dict(given)


def _settings() -> frozenset[str]:
    from trainers.recipe import Recipe

    return frozenset(Recipe().to_dict())


def started_fresh(
    store: BlobStore, older: AdapterRecord, task: TaskRecord, backbone: BackboneRecord
) -> list[str]:
    """The tensors that a task has on a backbone and that do not fit those of an older adapter.

    Its condition's own are left to the training. Raises ConfigInvalid where no layer fits, or where the kind
    does not fit the backbone.
    """
    wanted = _shapes(task, backbone)
    try:
        held = read_meta(Path(store.path(older.blob_digest)))[1].tensors
    except (AdapterFileInvalid, StorageError) as error:
        raise ConfigInvalid("warm start", f"{older.ref} cannot be read: {words_of(error)}") from error
    fits = {name for name, shape in wanted.items() if name in held and held[name].shape == shape}
    if not any(name.startswith("layers.") for name in fits):
        raise ConfigInvalid("warm start", f"no layer of {older.ref} has the shape that {backbone.ref} needs.")
    return sorted(wanted.keys() - fits)


def _shapes(task: TaskRecord, backbone: BackboneRecord) -> dict[str, tuple[int, ...]]:
    """By name, what an adapter of this task on this backbone holds; no weights are read."""
    from affinery.adapters import kind as kind_named
    from affinery.backbones import architecture
    from affinery.backbones.contract import on_meta

    spec = spec_of(backbone)
    sketch = on_meta(spec, architecture(spec.arch))
    sites, kind = sketch.sites(), kind_named(task.kind)
    config = kind.config(task.config)
    found = {
        f"layers.{name}.{part}": tuple(tensor.shape)
        for name in kind.choose(sites, config)
        for part, tensor in kind.parts(sites[name], config).items()
    }
    return found | {"class_rows": (len(task.classes), int(sketch.class_table.shape[1]))}

"""Begin from an older adapter: of another dataset version, or of the backbone's version before."""

from __future__ import annotations

import torch
from torch import Tensor

from affinery.adapters.files import STEM, Adapter
from affinery.errors import ConfigInvalid
from trainers.loop import CoTraining


def begin_from(training: CoTraining, task: str, older: Adapter) -> list[str]:
    """Puts an older adapter's tensors into a task that has not been trained yet. → what is started fresh

    A tensor is taken where name and shape are the same; its average begins where it begins. Other tasks stay
    as they are. Raises ConfigInvalid for an adapter of another kind, or of which no layer fits.
    """
    slot = training.model.task(task)
    if older.meta.kind != slot.meta.kind:
        kinds = f"an adapter of the kind {older.meta.kind}, and the task is learnt with {slot.meta.kind}"
        raise ConfigInvalid("warm start", f"{older.meta.task!r} gives {task!r} {kinds}.")
    own = _own_tensors(training, task)
    fitting = [name for name, tensor in own.items() if _fits(older.tensors.get(name), tensor)]
    if not any(name.startswith("layers.") for name in fitting):
        raise ConfigInvalid(
            "warm start", f"no layer of {older.meta.task!r} has the shape that {task!r} needs."
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(older.tensors[name])
    training.learner(task).begin()
    return sorted(own.keys() - set(fitting))


def _own_tensors(training: CoTraining, task: str) -> dict[str, Tensor]:
    """The task's tensors by their names in its file, as views of those that train."""
    model = training.model
    slot = model.task(task)
    own = {
        f"layers.{site}.{part}": tensor
        for site, bank in model.banks(model.groups[slot.group]).items()
        for part, tensor in bank.tensors(slot.slot).items()
    }
    own["class_rows"] = slot.rows
    if slot.stem is not None:
        own |= {f"{STEM}{name}": tensor for name, tensor in slot.stem.tensors().items()}
    return own


def _fits(older: Tensor | None, own: Tensor) -> bool:
    return older is not None and older.shape == own.shape

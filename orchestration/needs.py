"""What a training needs, by arithmetic and before anything is loaded; and whether there is so much."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from orchestration.errors import TooLarge
from orchestration.planner import GIB
from orchestration.specs import spec_of
from registry.records import BackboneRecord

if TYPE_CHECKING:
    from affinery.estimate import Cost


class Learner(Protocol):
    """What of a task decides its cost: of one that is registered, or of one that is to be."""

    @property
    def kind(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def image_size(self) -> int | None: ...


@dataclass(frozen=True)
class Need:
    """Of all tasks of one training. macs: of a step, all samples of it.

    weights_bytes: of the one frozen backbone; states_bytes: of what trains; saved_bytes: what one pass keeps
    for its backward pass, with everything in 32 bits and nothing computed again.
    """

    parameters: int
    macs: float
    weights_bytes: int
    states_bytes: int
    saved_bytes: int

    @property
    def memory_bytes(self) -> int:
        return self.weights_bytes + self.states_bytes + self.saved_bytes

    def least_bytes(self, recipe: Mapping[str, Any], shared_by: int = 1) -> int:
        """What one of so many workers cannot do without: 16 bits may halve what is kept, or none is kept."""
        kept = self.saved_bytes
        if recipe.get("recompute", "none") != "none":
            kept = 0
        elif recipe.get("precision", "auto") != "fp32":
            kept //= 2
        return self.weights_bytes + self.states_bytes + kept // shared_by


def of_training(backbone: BackboneRecord, learners: Sequence[Learner], recipe: Mapping[str, Any]) -> Need:
    """Raises ConfigInvalid where the backbone cannot be built."""
    spec = spec_of(backbone).to_json()
    batch, mask = recipe["batch"], recipe.get("mask_ratio", 0.0)
    at_once = -(-batch // recipe.get("accumulate", 1))
    costs = [
        _cost(spec, task.kind, json.dumps(task.config), len(task.classes), at_once, mask, task.image_size)
        for task in learners
    ]
    steps = [cost.masked or cost.step for cost in costs]
    # The last steps are taken without a mask, and so decide how much has to be there.
    largest = [
        cost.step if recipe.get("unmasked_share", 0.2) > 0 else cost.masked or cost.step for cost in costs
    ]
    return Need(
        sum(cost.parameters for cost in costs),
        sum(step.macs for step in steps) * batch,
        costs[0].weights_bytes,
        sum(cost.states_bytes for cost in costs),
        sum(step.saved_bytes for step in largest),
    )


@lru_cache(maxsize=64)
def _cost(
    spec: str, kind: str, config: str, classes: int, batch: int, mask_ratio: float, image_size: int | None
) -> Cost:
    from affinery.backbones.contract import BackboneSpec
    from affinery.estimate import Estimator, Setup

    setup = Setup(classes, batch, mask_ratio, image_size)
    return Estimator(BackboneSpec.from_json(spec), setup).cost(kind, json.loads(config))


def check_fits(
    need: Need, recipe: Mapping[str, Any], room_bytes: int, where: str, shared_by: int = 1
) -> None:
    """Raises TooLarge, with what would help, where a training cannot do with what there is.

    shared_by: so many workers take their part of each batch in a room of their own.
    """
    least = need.least_bytes(recipe, shared_by)
    if not room_bytes or least <= room_bytes:
        return
    fixed = need.weights_bytes + need.states_bytes
    advice = [*advice_for(need, recipe, room_bytes - fixed, shared_by), "a worker on a larger machine"]
    parts = [
        f"{need.weights_bytes / GIB:.3g} GiB of weights",
        f"{need.states_bytes / GIB:.3g} GiB for what trains",
    ]
    if least > fixed:
        kept = (least - fixed) / GIB
        parts.append(f"{kept:.3g} GiB kept for the backward pass of {recipe['batch']} samples a task")
    raise TooLarge(f"{least / GIB:.3g} GiB", parts, f"{where} has {room_bytes / GIB:.3g} GiB", advice)


def advice_for(need: Need, recipe: Mapping[str, Any], left_bytes: float, shared_by: int = 1) -> list[str]:
    """What makes a training smaller. left_bytes: what there is beside the weights and what trains."""
    if left_bytes <= 0:
        return ["fewer tasks in one job", "a smaller --rank"]
    passes = recipe.get("accumulate", 1)
    kept = need.least_bytes(recipe, shared_by) - need.weights_bytes - need.states_bytes
    while kept > left_bytes and passes < recipe["batch"]:
        passes, kept = 2 * passes, kept // 2
    passes = min(passes, recipe["batch"])
    smaller = max(1, recipe["batch"] * recipe.get("accumulate", 1) // passes)
    advice = [f"--set accumulate={passes} (the same result, in parts)", f"--set batch={smaller}"]
    if recipe.get("unmasked_share", 0.2) == 0:
        advice.append("a larger mask (--set mask_ratio=…)")
    return [*advice, "--set recompute=block"]

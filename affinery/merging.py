"""Merged compositions: several tasks of one kind as one, exact in every layer.

y + Σ weight · (a task's change of y): low-rank branches stand side by side along their rank, each
weight folded into them, and what is linear is summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from affinery.adapters.contract import Config, Kind, matches
from affinery.adapters.files import Adapter, AdapterMeta
from affinery.backbones.contract import Site
from affinery.errors import ConfigInvalid
from affinery.merge_recipe import Weight

if TYPE_CHECKING:
    from affinery.composed import ComposedModel

# Rows of merged tasks stand beyond every row that a registry gives out, so that none comes to lie on them.
FIRST_ROW = 2**40


def merged(
    model: ComposedModel, name: str, weights: Mapping[str, float | Weight], block: tuple[int, int]
) -> Adapter:
    """The adapter of a weighted sum of a model's tasks.

    Its class rows are its members', one after the other, under the names `task/class`.
    Raises UnknownName or ConfigInvalid.
    """
    if not weights:
        raise ConfigInvalid("merge", "there is no task to merge.")
    members = [(_weight(task, weight), model.task(task)) for task, weight in weights.items()]
    groups = [model.groups[task.group] for _, task in members]
    kind: Kind[Any] = groups[0].kind
    if any(group.kind is not kind for group in groups):
        kinds = sorted({group.kind.name for group in groups})
        raise ConfigInvalid("merge", f"the tasks are of several kinds: {', '.join(kinds)}.")
    config = _config(kind, [(group.config, group.sites) for group in groups])
    for (weight, task), group in zip(members, groups, strict=True):
        _check_layers(task.meta.task, weight, {site: model.sites[site] for site in group.sites})
    tensors: dict[str, Tensor] = {}
    for site_name in kind.choose(model.sites, config):
        site = model.sites[site_name]
        there = [
            (
                _at(weight, site_name, site),
                group.config,
                _on_cpu(model.banks(group)[site_name].tensors(task.slot)),
            )
            for (weight, task), group in zip(members, groups, strict=True)
            if site_name in group.sites
        ]
        shapes = kind.parts(site, config).items()
        nothing = {part: torch.full(own.shape, own.neutral) for part, own in shapes}
        for part, tensor in (kind.merge(site, config, there) if there else nothing).items():
            tensors[f"layers.{site_name}.{part}"] = tensor
    tensors["class_rows"] = torch.cat([task.rows.detach().cpu() for _, task in members])
    names = tuple(f"{task.meta.task}/{label}" for _, task in members for label in task.meta.class_names)
    meta = AdapterMeta(name, kind.name, config.to_dict(), model.fingerprint, model.null_row, block, names)
    return Adapter(meta, tensors)


def free_block(model: ComposedModel, tasks: Iterable[str]) -> tuple[int, int]:
    """Rows for a sum of these tasks that no other merged task has. Raises UnknownName."""
    count = sum(len(model.task(task).meta.class_names) for task in tasks)
    first = max([FIRST_ROW, *(slot.meta.block[1] for slot in model.slots.values())])
    return first, first + count


def _weight(task: str, given: float | Weight) -> Weight:
    try:
        return given if isinstance(given, Weight) else Weight(given)
    except ValueError as error:
        raise ConfigInvalid("merge", f"of {task!r} {error}.") from error


def _at(weight: Weight, name: str, site: Site) -> float:
    """A task's weight at one layer."""
    own = [value for target, value in weight.layers if matches(name, site, target)]
    return own[-1] if own else weight.whole


def _check_layers(task: str, weight: Weight, sites: Mapping[str, Site]) -> None:
    """Raises ConfigInvalid where a weight is given to layers that the task does not change."""
    for target, _ in weight.layers:
        if not any(matches(name, site, target) for name, site in sites.items()):
            roles = ", ".join(sorted({site.role for site in sites.values()}))
            raise ConfigInvalid(
                "merge",
                f"{target!r} means no layer that {task!r} changes. Name a role ({roles}) or a pattern of "
                f"names like {next(iter(sites))!r}.",
            )


def _config(kind: Kind[Any], members: list[tuple[Any, tuple[str, ...]]]) -> Config:
    """The merged config, whose targets are the members' together."""
    config: Config = kind.merged_config([own for own, _ in members])
    if hasattr(config, "targets") and len({own.targets for own, _ in members}) > 1:
        together = tuple(dict.fromkeys(site for _, sites in members for site in sites))
        config = replace(config, targets=together)  # type: ignore[call-arg]
    return config


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {part: tensor.detach().cpu() for part, tensor in tensors.items()}

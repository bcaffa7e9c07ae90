"""A backbone with one task in its weights: its classes are its own and the task's, the null row last."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, on_meta
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from affinery.formats.contract import distance
from affinery.formats.probe import probe


def folded_backbone(model: ComposedModel, task: str) -> Backbone:
    """The backbone of one task, with tensors of its own. Raises ConfigInvalid where something does not fold.

    Labels: the backbone's classes keep theirs, the task's follow, the null row comes last.
    """
    slot = model.task(task)
    if slot.stem is not None or slot.meta.image_size is not None:
        raise ConfigInvalid("format", f"{task!r} has a condition or a size of its own, which are no weights.")
    table = model.backbone.class_table
    null = model.null_row
    rows = torch.cat([table[:null], slot.rows.to(table.dtype), table[null:]]).detach()
    remainder = model.fold(task)
    try:
        if remainder.reasons:
            layer, reason = next(iter(remainder.reasons.items()))
            raise ConfigInvalid(
                "format",
                f"{task!r} is not wholly in the weights: {reason} ({len(remainder.reasons)} layers, as "
                f"{layer}). Export torch-export, onnx or a bundle, or diffusers of all tasks.",
            )
        state = {name: tensor.clone() for name, tensor in plain_state(model).items()}
    finally:
        model.unfold()
    names = model.spec.class_names + tuple(_free(model, task, name) for name in slot.meta.class_names)
    spec = replace(model.spec, class_names=names)
    built = on_meta(spec, architecture(spec.arch))
    state[_table_name(built)] = rows.clone()
    built.load_state_dict(state, strict=True, assign=True)
    return built.freeze()


def plain_state(model: ComposedModel) -> dict[str, Tensor]:
    """The backbone's tensors as they are now, a folded task's included."""
    from affinery.composed import _own_tensors

    return dict(_own_tensors(model.backbone, ""))


def _table_name(backbone: Backbone) -> str:
    (name,) = [n for n, parameter in backbone.named_parameters() if parameter is backbone.class_table]
    return name


def _free(model: ComposedModel, task: str, name: str) -> str:
    """A class name that the backbone does not have already."""
    return f"{task}/{name}" if name in model.spec.class_names else name


@torch.no_grad()
def compared(model: ComposedModel, task: str, theirs: nn.Module) -> float:
    """How far a backbone with a folded task is from the model.

    theirs: called with latents, time steps and labels. The null row is asked too.
    """
    low, _ = model.task(task).meta.block
    first, last = model.null_row, model.null_row + len(model.task(task).meta.class_names)
    asked = probe(model, [task])
    labels = [last if row == model.null_row else first + row - low for row in asked.rows.tolist()]
    return distance(asked.answer(model), theirs(asked.x, asked.t, torch.tensor(labels)))

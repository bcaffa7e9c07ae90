"""A composed model as one graph of tensors: latent, time step, label and task index in, prediction out.

Task 0 is the bare backbone, tasks 1, 2, … the model's in their order. Labels number the rows of a packed
class table: the backbone's classes, its null row, then every task's classes, without gaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from affinery.adapters.routing import BACKBONE, Mix, Plan, Share
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from affinery.formats.contract import Shipment
from affinery.formats.probe import Probe, probe

INPUTS = ("latent", "timestep", "label", "task")


class Program(nn.Module):
    """The graph. Buffers say for every task where its tensors are; no Python of the model runs in it."""

    def __init__(self, model: ComposedModel) -> None:
        super().__init__()
        model.close_gaps()
        self.model = model
        places = [BACKBONE, *(slot.place for slot in model.slots.values())]
        self.groups = sorted(model.groups)
        for group in self.groups:
            slots = torch.tensor([slot if own == group else 0 for own, slot in places])
            self.register_buffer(f"slots_{group}", slots)
        parts = [model.backbone.class_table, *(task.rows for task in model.slots.values())]
        self.register_buffer("table", torch.cat([part.detach().to(parts[0].dtype) for part in parts]))

    def forward(self, latent: Tensor, timestep: Tensor, label: Tensor, task: Tensor) -> Tensor:
        """latent: (B, C, H, W); timestep, label, task: (B,) → (B, C, H, W)."""
        shares = [Share(group, Mix(self.get_buffer(f"slots_{group}")[task])) for group in self.groups]
        classes = nn.functional.embedding(label, self.get_buffer("table"))
        with self.model.route.using(Plan(tuple(shares))):
            return self.model.backbone.denoise(latent, timestep, classes)


def labels_of(model: ComposedModel) -> dict[str, dict[str, int]]:
    """The label of every class by task, "" being the backbone."""
    first = model.null_row + 1
    found = {"": {name: i for i, name in enumerate(model.spec.class_names)}}
    for name, task in model.slots.items():
        found[name] = {label: first + i for i, label in enumerate(task.meta.class_names)}
        first += len(task.meta.class_names)
    return found


def described(shipment: Shipment) -> dict[str, Any]:
    """What a reader of the graph must know, as JSON."""
    model = shipment.model
    return {
        "schema": 1,
        "inputs": {
            "latent": ["batch", *model.spec.latent_shape()],
            "timestep": ["batch"],
            "label": ["batch"],
            "task": ["batch"],
        },
        "largest_batch": largest_batch(model),
        "tasks": {"": 0} | {name: i for i, name in enumerate(model.slots, 1)},
        "labels": labels_of(model),
        "null_label": model.null_row,
        "guided_channels": model.backbone.guided_channels,
        "channels": model.spec.latent_shape()[0],
        "scheduler": scheduler_config(model),
        "sampler": model.spec.defaults.get("sampler", {}),
        "lineage": dict(shipment.facts),
    }


def scheduler_config(model: ComposedModel) -> dict[str, Any]:
    """diffusers' DDIMScheduler, as the model is sampled with."""
    from affinery.diffusion.schedule import scheduler

    config = {name: value for name, value in scheduler(model.spec).config.items() if name[0] != "_"}
    return {"_class_name": "DDIMScheduler"} | config


def exported(model: ComposedModel) -> ExportedProgram:
    """The graph, for batches of any size. Raises ConfigInvalid where its four inputs do not say all."""
    _check(model)
    program = Program(model).eval()
    example = asked(model, probe(model, [None, *model.slots], 3))
    batch = Dim("batch", min=1, max=largest_batch(model))
    with denoiser_alone(model), torch.no_grad():
        dynamic = {name: {0: batch} for name in INPUTS}
        return torch.export.export(program, example, dynamic_shapes=dynamic, strict=False)


def largest_batch(model: ComposedModel) -> int:
    """diffusers' upsampling takes another way from 64 samples on, and a graph has one."""
    return 63 if model.spec.arch.startswith("unet") else 65_536


def _check(model: ComposedModel) -> None:
    if model.spec.text is not None:
        raise ConfigInvalid(
            "format",
            "its graph takes no captions, and this backbone is told some. Take a bundle.",
        )
    for name, task in model.slots.items():
        if task.stem is not None or model.image_size(name) != model.spec.image_size:
            raise ConfigInvalid(
                "format",
                f"its graph takes no conditions and one size; {name!r} has its own. "
                "Compose without it, or take a bundle.",
            )


@contextmanager
def denoiser_alone(model: ComposedModel) -> Iterator[None]:
    """For a while without what draws no step: the VAE is not part of the graph."""
    backbone = model.backbone
    held, backbone.vae = backbone.vae, None
    try:
        yield
    finally:
        backbone.vae = held


def asked(model: ComposedModel, probe: Probe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A probe as the graph's inputs."""
    order: Mapping[str | None, int] = {None: 0} | {name: i for i, name in enumerate(model.slots, 1)}
    labels, first = {row: row for row in range(model.null_row + 1)}, model.null_row + 1
    for task in model.slots.values():
        for row in range(*task.meta.block):
            labels[row] = first
            first += 1
    label = torch.tensor([labels[row] for row in probe.rows.tolist()])
    return probe.x, probe.t, label, torch.tensor([order[task] for task in probe.tasks])

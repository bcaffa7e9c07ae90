"""What an adapter would cost, before anything is paid: counted on the meta device, without a single weight.

Parameters and the adapter file's bytes follow from shapes. A training step is run through the real code (the
backbone, the adapted modules, autograd), but on tensors that have shapes and no values: its multiplications
are those that PyTorch's flop counter sees, its saved activations those that autograd really keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affinery.adapters import kind as kind_named
from affinery.adapters.contract import Config, Kind, whole_number
from affinery.adapters.files import META_KEY, Adapter, AdapterMeta
from affinery.backbones import architecture, dit_spec
from affinery.backbones.contract import BackboneSpec, on_meta, parameter_count
from affinery.backbones.files import read_spec
from affinery.composed import ComposedModel, TaskSlot
from affinery.diffusion.objective import l_simple, without_variance
from affinery.errors import ConfigInvalid, UnknownName
from affinery.importing import IMPORTING
from affinery.meta_device import FusedAttention, Multiplications, SavedTensors, Trusting

FLOAT_BYTES = 4
STATES = 5  # the tensor, its gradient, AdamW's two moments, the running average
TASK = "task"
FINGERPRINT = "0" * 64
GROUPS = {
    "down": "low-rank",
    "up": "low-rank",
    "A": "low-rank",
    "B": "low-rank",
    "down_bias": "bias",
    "up_bias": "bias",
}
"""What parts are counted as; any other under its own name."""


def named_architectures() -> list[str]:
    """Architectures whose shapes are known here, and that can so be estimated without a file."""
    with IMPORTING:
        from affinery.backbones import unet_condition

    return [*dit_spec.NAMED, *unet_condition.NAMED]


def spec_for(arch: str) -> BackboneSpec:
    """The spec of a well-known architecture, a backbone file or a diffusers folder. No weight is read.

    Raises UnknownName or BackboneFileInvalid.
    """
    if arch in dit_spec.NAMED:
        return dit_spec.named_spec(arch)
    path = Path(arch)
    if path.is_dir():
        from affinery.backbones.diffusers_folder import read_folder
        from affinery.backbones.model_folder import read_shapes

        with Trusting():
            return read_folder(path, read_tensors=read_shapes).spec
    if path.exists() or path.suffix or len(path.parts) > 1:
        return read_spec(path)
    with IMPORTING:
        from affinery.backbones import unet_condition

    if arch in unet_condition.NAMED:
        return unet_condition.named_spec(arch)
    raise UnknownName("architecture or backbone file", arch, named_architectures())


@dataclass(frozen=True)
class Step:
    """One training step of a batch.

    tokens: that are computed of each image, 0 where there are none; forward_macs, macs: multiplications a
    sample, of the forward pass and of forward and backward together; saved_bytes: what the forward pass
    keeps for the backward pass, of the whole batch.
    """

    tokens: int
    forward_macs: float
    macs: float
    saved_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a task of one kind costs.

    modules: how many it changes; by_part: trained parameters, class rows included; file_bytes: of its adapter
    file; states_bytes: of what training keeps of the trained tensors (`STATES` of each); weights_bytes: of
    the frozen backbone; step: without masked tokens; masked: with.
    """

    kind: str
    config: dict[str, Any]
    modules: int
    by_part: dict[str, int]
    file_bytes: int
    states_bytes: int
    weights_bytes: int
    step: Step
    masked: Step | None

    @property
    def parameters(self) -> int:
        return sum(self.by_part.values())

    def memory_bytes(self, step: Step) -> int:
        """Of training: the weights, the states, and what the forward pass keeps."""
        return self.weights_bytes + self.states_bytes + step.saved_bytes

    def to_json(self) -> dict[str, Any]:
        totals: dict[str, Any] = {"parameters": self.parameters, "memory_bytes": self.memory_bytes(self.step)}
        if self.masked is not None:
            totals["masked_memory_bytes"] = self.memory_bytes(self.masked)
        return asdict(self) | totals


@dataclass(frozen=True)
class Setup:
    """How a task would be trained. classes: M, its rows in the class table; image_size: None for the
    backbone's own; mask_ratio: the share of the tokens that masked training drops.
    """

    classes: int = 1
    batch: int = 64
    mask_ratio: float = 0.0
    image_size: int | None = None

    def __post_init__(self) -> None:
        whole_number("classes", self.classes, 1, 1_000_000)
        whole_number("batch", self.batch, 1, 1_000_000)
        if not 0 <= self.mask_ratio < 1:
            raise ConfigInvalid("mask_ratio", f"{self.mask_ratio} is not from 0 to below 1.")
        if self.image_size is not None:
            whole_number("image_size", self.image_size, 1, 8192)


class Estimator:
    """Counts on one backbone, which is built once, without weights.

    parameters: of the denoiser, its class table and stored positions included, VAE and text encoder not.
    Raises ConfigInvalid where the backbone cannot be built or the set-up does not fit it.
    """

    def __init__(self, spec: BackboneSpec, setup: Setup | None = None) -> None:
        backbone = on_meta(spec, architecture(spec.arch))
        beside = [part for part in (backbone.vae, backbone.text) if isinstance(part, nn.Module)]
        self.spec, self.setup = spec, setup or Setup()
        self.weights_bytes = FLOAT_BYTES * parameter_count(backbone)
        self.parameters = parameter_count(backbone) - sum(parameter_count(part) for part in beside)
        size = self.setup.image_size
        _, rows, columns = backbone.hint_shape(size)
        self.tokens = rows * columns if backbone.tokens else 0
        if self.setup.mask_ratio and not self.tokens:
            raise ConfigInvalid("mask_ratio", f"{spec.arch} has no tokens to mask; it is trained with 0.")
        self.model = ComposedModel(backbone, FINGERPRINT)
        self.counted = Multiplications()

    def count(self, kind: str, values: Mapping[str, Any]) -> dict[str, int]:
        """A task's parameters by part. Raises UnknownName or ConfigInvalid."""
        method = kind_named(kind)
        return by_part(self.tensors(method, method.config(values)))

    def cost(self, kind: str, values: Mapping[str, Any]) -> Cost:
        """Of one task of a kind with these settings. Raises UnknownName or ConfigInvalid."""
        method = kind_named(kind)
        config = method.config(values)
        record = self._record(method, config)
        tensors = self.tensors(method, config)
        task = self.model.load(Adapter(record, tensors))
        self._train(task)
        masked = self.setup.mask_ratio > 0
        try:
            return Cost(
                kind=kind,
                config=config.to_dict(),
                modules=len(self.model.groups[task.group].sites),
                by_part=by_part(tensors),
                file_bytes=file_bytes(record, tensors),
                states_bytes=STATES * FLOAT_BYTES * sum(tensor.numel() for tensor in tensors.values()),
                weights_bytes=self.weights_bytes,
                step=self._step(self.tokens, masked=False),
                masked=self._step(self._kept(), masked=True) if masked else None,
            )
        finally:
            self.model.unload(TASK)

    def tensors(self, kind: Kind[Any], config: Config) -> dict[str, Tensor]:
        """What the adapter file holds, by name: shapes without values. Raises ConfigInvalid."""
        width = self.model.backbone.class_table.shape[1]
        shapes: dict[str, tuple[int, ...]] = {
            f"layers.{name}.{part}": tensor.shape
            for name in kind.choose(self.model.sites, config)
            for part, tensor in kind.parts(self.model.sites[name], config).items()
        }
        shapes["class_rows"] = (self.setup.classes, width)
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def _record(self, kind: Kind[Any], config: Config) -> AdapterMeta:
        first, count = self.spec.null_index + 1, self.setup.classes
        return AdapterMeta(
            TASK,
            kind.name,
            config.to_dict(),
            FINGERPRINT,
            self.spec.null_index,
            (first, first + count),
            tuple(f"class {i}" for i in range(count)),
        )

    def _train(self, task: TaskSlot) -> None:
        """Asks for the gradients that training asks for."""
        for bank in self.model.banks(self.model.groups[task.group]).values():
            bank.expose(task.slot, 1)
        task.rows.requires_grad_(True)

    def _kept(self) -> int:
        return max(1, round(self.tokens * (1 - self.setup.mask_ratio)))

    def _step(self, tokens: int, masked: bool) -> Step:
        """Runs one step of a batch of the task."""
        batch = self.setup.batch
        with torch.device("meta"):
            x = torch.empty(batch, *self.spec.latent_shape(self.setup.image_size))
            t, rows = (torch.empty(batch, dtype=torch.long) for _ in range(2))
            keep = torch.empty(batch, tokens, dtype=torch.long) if masked else None
            words = self.spec.text
            text = None if words is None else torch.empty(batch, words.length, words.width)
        target = self.model.backbone.patches(x)[:, :tokens] if masked else x
        plan = self.model.plan([TASK] * batch)
        saved = SavedTensors(self.model.parameters())
        self.counted.macs = 0.0
        with self.counted, Trusting(), FusedAttention():
            with saved.watching():
                predicted = self.model.denoise(x, t, rows, plan, keep, text)
                predicted = without_variance(predicted, target, x.shape[1])
                loss = l_simple(predicted, target).sum()
            forward = self.counted.macs
            loss.backward()
        return Step(tokens, forward / batch, self.counted.macs / batch, saved.total_bytes)


def by_part(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers an adapter has of each part, its class rows last."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = name.rpartition(".")[2]
        group = GROUPS.get(part, part)
        counts[group] = counts.get(group, 0) + tensor.numel()
    counts["class_rows"] = counts.pop("class_rows")
    return counts


def file_bytes(record: AdapterMeta, tensors: Mapping[str, Tensor]) -> int:
    """The exact size of the adapter file: safetensors' header, padded to eight bytes, and float32 values."""
    header: dict[str, Any] = {"__metadata__": {META_KEY: record.to_json()}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + FLOAT_BYTES * tensors[name].numel()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode())
    return 8 + (length + 7) // 8 * 8 + end

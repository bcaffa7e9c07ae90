"""A training as the outside sees it: built from a plan, advanced in stretches, saved, resumed, finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from affinery import tensor_files
from affinery.adapters.files import AdapterMeta, adapter_bytes
from affinery.backbones.files import inspect_backbone, load_backbone
from affinery.composed import ComposedModel
from affinery.errors import AdapterBackboneMismatch, ConfigInvalid
from trainers.checkpoints import restore_checkpoint, save_checkpoint
from trainers.data import load_split
from trainers.loop import CoTraining, TaskData
from trainers.packs import verify_pack
from trainers.plan import PlannedTask, TrainingPlan


@dataclass(frozen=True)
class Progress:
    """Where a training stands. losses: by task, the mean over the stretch since the last report."""

    step: int
    steps: int
    losses: dict[str, float]

    @property
    def done(self) -> bool:
        return self.step >= self.steps


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TrainingSession:
    """One training in this process. Raises, when built, what its inputs' checks raise."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        path = Path(plan.backbone_file)
        found = inspect_backbone(path)
        if found.fingerprint != plan.fingerprint:
            raise AdapterBackboneMismatch(plan.tasks[0].name, found.fingerprint, plan.fingerprint)
        backbone = load_backbone(path).to(device())
        self.model = ComposedModel(backbone, plan.fingerprint)
        self.training = CoTraining(self.model, [self._data(task) for task in plan.tasks], plan.recipe)

    def _data(self, task: PlannedTask) -> TaskData:
        spec = self.model.spec
        classes = verify_pack(Path(task.pack), task.dataset_digest).classes
        if classes != task.class_names:
            raise ConfigInvalid("task", f"{task.name!r}: its classes are not those of its dataset.")
        split = load_split(Path(task.pack), spec.image_size, spec.channels)
        meta = AdapterMeta(
            task.name,
            task.kind,
            task.config,
            self.plan.fingerprint,
            spec.null_index,
            task.block,
            task.class_names,
        )
        return TaskData(meta, split.train.images, split.train.labels)

    @property
    def step(self) -> int:
        return self.training.step

    def advance(self) -> Progress:
        """Trains until the next report is due, or the end."""
        recipe, training = self.plan.recipe, self.training
        totals = [0.0] * len(self.plan.tasks)
        first = training.step
        while training.step < recipe.steps:
            for i, loss in enumerate(training.train_step()):
                totals[i] += loss
            if training.step % self.plan.report_every == 0:
                break
        count = max(1, training.step - first)
        losses = {task.name: total / count for task, total in zip(self.plan.tasks, totals, strict=True)}
        return Progress(training.step, recipe.steps, losses)

    def save(self, folder: Path) -> None:
        """Writes a checkpoint; once the training is done, the finished adapters beside it.

        The adapters come first: where a checkpoint says that the training is done, they are there.
        Raises TrainingDiverged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.training.step >= self.plan.recipe.steps:
            for i, adapter in enumerate(self.training.finish()):
                tensor_files.write_whole(folder / adapter_name(i), adapter_bytes(adapter))
        save_checkpoint(self.training, folder)

    def restore(self, folder: Path) -> None:
        """Goes on from a checkpoint. Raises CheckpointUnreadable."""
        restore_checkpoint(self.training, folder)


def adapter_name(index: int) -> str:
    """The file of the plan's index-th task in a finished checkpoint."""
    return f"adapter-{index}.safetensors"

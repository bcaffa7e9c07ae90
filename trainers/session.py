"""A training as the outside sees it: built from a plan, advanced in stretches, saved, resumed, finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from affinery import tensor_files
from affinery.adapters.files import AdapterMeta, adapter_bytes, read_adapter
from affinery.backbones.contract import Backbone
from affinery.backbones.files import inspect_backbone, load_backbone
from affinery.composed import ComposedModel
from affinery.errors import AdapterBackboneMismatch, ConfigInvalid
from trainers.checkpoints import restore_checkpoint, save_checkpoint
from trainers.conditions import published
from trainers.data import Split, load_split
from trainers.latents import cached, captions, latents_key
from trainers.loop import Clock, CoTraining
from trainers.packs import verify_pack
from trainers.plan import PlannedTask, TrainingPlan
from trainers.ranks import ALONE, Ranks
from trainers.streams import Captions, TaskData
from trainers.warm_start import begin_from


@dataclass(frozen=True)
class Progress:
    """Where a training stands. losses: by task, the mean over the stretch since the last report.

    idle: the share of that time in which steps waited for data.
    """

    step: int
    steps: int
    losses: dict[str, float]
    idle: float = 0.0

    @property
    def done(self) -> bool:
        return self.step >= self.steps


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TrainingSession:
    """One training in this process. Raises, when built, what its inputs' checks raise."""

    def __init__(self, plan: TrainingPlan, ranks: Ranks = ALONE) -> None:
        self.plan = plan
        path = Path(plan.backbone_file)
        found = inspect_backbone(path)
        if found.fingerprint != plan.fingerprint:
            raise AdapterBackboneMismatch(plan.tasks[0].name, found.fingerprint, plan.fingerprint)
        backbone = load_backbone(path).to(device())
        self.model = ComposedModel(backbone, plan.fingerprint)
        self.training = CoTraining(self.model, [self._data(task) for task in plan.tasks], plan.recipe, ranks)
        self._warm_up(plan.tasks)

    def join(self, *tasks: PlannedTask) -> None:
        """Takes tasks into a training under way; from now on they are part of its plan."""
        self.training.join(*(self._data(task) for task in tasks))
        self._warm_up(tasks)
        self.plan = replace(self.plan, tasks=(*self.plan.tasks, *tasks))

    def leave(self, *names: str) -> None:
        """Lets tasks go with what they have learnt; their adapters are saved with the others' at the end."""
        self.training.leave(*names)

    def _warm_up(self, tasks: Sequence[PlannedTask]) -> None:
        for task in tasks:
            if task.warm_start is not None:
                begin_from(self.training, task.name, read_adapter(Path(task.warm_start)))

    def _data(self, task: PlannedTask) -> TaskData:
        spec = self.model.spec
        classes = verify_pack(Path(task.pack), task.dataset_digest).classes
        if classes != task.class_names:
            raise ConfigInvalid("task", f"{task.name!r}: its classes are not those of its dataset.")
        split = load_task(task, self.model.backbone, self.plan.cache)
        meta = AdapterMeta(
            task.name,
            task.kind,
            task.config,
            self.plan.fingerprint,
            spec.null_index,
            task.block,
            task.class_names,
            condition=published(task.condition),
            image_size=task.image_size,
        )
        images, labels = split.train.images, split.train.labels
        with self._kept() as folder:
            if spec.latent is not None:
                key = latents_key(self.model.backbone, task.dataset_digest, "train", images.shape[-1])
                images = cached(self.model.backbone, images, folder, key)
            captions = self._captions(split.train.captions, task.dataset_digest, folder)
        return TaskData(meta, images, labels, captions, split.train.conditions)

    def _captions(self, told: Sequence[str], dataset_digest: str, folder: Path) -> Captions | None:
        """None where the backbone takes none, or all are empty; then it takes the empty one by itself."""
        if self.model.spec.text is None or not told:
            return None
        texts = ["", *sorted(set(told) - {""})]
        places = {text: i for i, text in enumerate(texts)}
        which = torch.tensor([places[text] for text in told])
        return Captions(captions(self.model.backbone, texts, folder, dataset_digest), which)

    @contextmanager
    def _kept(self) -> Iterator[Path]:
        """The folder of what is made of datasets once; a passing one where none is kept."""
        if self.plan.cache is not None:
            yield Path(self.plan.cache)
        else:
            with TemporaryDirectory() as folder:
                yield Path(folder)

    @property
    def step(self) -> int:
        return self.training.step

    @property
    def done(self) -> bool:
        return self.training.done

    def advance(self) -> Progress:
        """Trains until the next report is due, or the end."""
        recipe, training = self.plan.recipe, self.training
        told: dict[str, list[float]] = {}
        training.clock = Clock()
        while not training.done:
            for name, loss in training.train_step().items():
                told.setdefault(name, []).append(loss)
            if training.step % self.plan.report_every == 0:
                break
        losses = {name: sum(values) / len(values) for name, values in told.items()}
        steps = training.step if training.done else max(recipe.steps, training.step + 1)
        return Progress(training.step, steps, losses, training.clock.idle)

    def save(self, folder: Path) -> None:
        """Writes a checkpoint; once the training is done, the finished adapters beside it.

        The adapters come first: where a checkpoint says that the training is done, they are there.
        Raises TrainingDiverged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.training.done:
            for i, adapter in enumerate(self.training.finish()):
                tensor_files.write_whole(folder / adapter_name(i), adapter_bytes(adapter))
        save_checkpoint(self.training, folder)

    def restore(self, folder: Path) -> None:
        """Goes on from a checkpoint. Raises CheckpointUnreadable."""
        restore_checkpoint(self.training, folder)


def load_task(task: PlannedTask, backbone: Backbone, cache: str | None) -> Split:
    """A task's images, captions and conditions, in its own size."""
    return load_split(
        Path(task.pack),
        task.image_size or backbone.spec.image_size,
        backbone.spec.channels,
        task.condition,
        None if cache is None else Path(cache),
    )


def adapter_name(index: int) -> str:
    """The file of the plan's index-th task in a finished checkpoint."""
    return f"adapter-{index}.safetensors"

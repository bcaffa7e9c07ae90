"""What training refuses or finds out: data that is not what it was, a loss or a sample that is no number."""

from __future__ import annotations

from affinery.errors import AffineryError


class TrainerError(AffineryError):
    """A training could not go on."""


class TrainingDiverged(TrainerError):
    """The loss of a task is not a number any more. Args: task, step."""

    lasting = True  # the same recipe would diverge again

    def __str__(self) -> str:
        task, step = self.args
        return f"The loss of {task!r} is no number after step {step}. Train it with a lower lr or class_lr."


class SamplesNotNumbers(TrainerError):
    """What a task draws is no image. Args: task, how many samples are no numbers, how many were drawn."""

    lasting = True  # the same seeds would draw the same

    def __str__(self) -> str:
        task, broken, count = self.args
        return (
            f"{task!r} draws no numbers: {broken} of {count} samples are no images, so nothing was "
            f"measured. Its training diverged; train it with a lower lr or class_lr."
        )


class CheckpointUnreadable(TrainerError, here={0: "the job's folder", 1: "the log says why"}):
    """A checkpoint that is torn or belongs to another training. Args: folder, reason."""

    def __str__(self) -> str:
        folder, reason = self.args
        return (
            f"The checkpoint in {folder} cannot be used: {reason}. The training starts from an earlier one."
        )


class GoldenUnreadable(TrainerError, here={0: "the store"}):
    """The golden images of a task cannot be read. Args: path, reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"The golden images in {path} cannot be read: {reason}"


class DatasetChanged(TrainerError, here={0: "the data folder"}):
    """A dataset is not what was pinned. Args: pack, what differs."""

    lasting = True

    def __str__(self) -> str:
        pack, what = self.args
        return (
            f"The dataset in {pack} is not the one that was pinned: {what}. Training refuses it. "
            f"Restore it from the DVC remote, or add the changed images as a new version."
        )

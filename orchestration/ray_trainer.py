"""Ray Train's trainer with fewer processes: each imports for seconds and holds memory, whatever it does.

Left out is the one that shares out Ray's datasets: ours are files. In a worker's own Ray two more are: one
frees what a controller that died had reserved, which the end of the driver's job does too; one asks an
autoscaler for machines, and the training would wait for it.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class Trainer(TorchTrainer):
    """For a Ray that others may use too."""

    without: tuple[type, ...] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, self.without)]


class LocalTrainer(Trainer):
    """For a Ray of our own."""

    without = (DatasetsCallback, PlacementGroupCleanerCallback)

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        given["scaling_policy"] = UntoldScalingPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**given)


class UntoldScalingPolicy(FixedScalingPolicy):
    """As many workers as were asked for; no autoscaler is told."""

    def after_controller_start(self, *_: Any) -> None:
        return

    def _maybe_send_resource_request(self) -> None:
        return

"""A pipeline in which every sample names its task. It needs torch and diffusers, nothing else.

pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipeline(["digits", "letters"], ["7", "A"], seeds=[0, 1]).images
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

DECODED_AT_ONCE = 8


class RoutedPipeline(DiffusionPipeline):
    """DDIM with classifier-free guidance over a graph of torch.export, which lies beside this file's copy."""

    _optional_components = ["vae"]  # noqa: RUF012 - as diffusers declares it

    def __init__(
        self, scheduler: Any, vae: Any = None, scaling: float | None = None, shift: float | None = None
    ) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        if vae is not None:
            self.register_modules(vae=vae)
        self.register_to_config(scaling=scaling, shift=shift)
        self._run: Any = None
        self._facts: dict[str, Any] = {}

    def _open(self) -> None:
        if self._run is None:
            folder = Path(self.config._name_or_path)
            self._facts = json.loads((folder / "model.json").read_text())
            self._run = torch.export.load(folder / "model.pt2").module()

    def tasks(self) -> dict[str, list[str]]:
        """The classes of every task, "" being the backbone."""
        self._open()
        return {task: list(labels) for task, labels in self._facts["labels"].items()}

    @torch.no_grad()
    def __call__(
        self,
        tasks: Sequence[str],
        labels: Sequence[str],
        seeds: Sequence[int] = (),
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """tasks, labels: one a sample; seeds: one a sample, 0, 1, … where none are given."""
        self._open()
        facts, count = self._facts, len(tasks)
        for name, label in zip(tasks, labels, strict=True):
            if name not in facts["labels"] or label not in facts["labels"][name]:
                raise ValueError(f"There is no class {label!r} of a task {name!r}; there are {self.tasks()}.")
        steps = num_inference_steps or int(facts["sampler"].get("steps", 50))
        guidance = facts["sampler"].get("guidance", 2.0) if guidance_scale is None else guidance_scale
        twins = 1 if guidance == 1 else 2
        task = torch.tensor([facts["tasks"][name] for name in tasks]).repeat_interleave(twins)
        rows = [facts["labels"][name][label] for name, label in zip(tasks, labels, strict=True)]
        numbers = torch.tensor(rows).repeat_interleave(twins)
        if twins == 2:
            numbers[1::2] = facts["null_label"]
        shape = facts["inputs"]["latent"][1:]
        noise = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            for seed in (seeds or range(count))
        ]
        self.scheduler.set_timesteps(steps)
        x = torch.stack(noise) * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            both = x.repeat_interleave(twins, dim=0)
            times = torch.full((len(both),), int(t), dtype=torch.long)
            predicted = self._in_parts(both, times, numbers, task)[:, : facts["channels"]]
            if twins == 2:
                wanted, free = predicted[0::2], predicted[1::2]
                guided = facts["guided_channels"]
                mixed = free + guidance * (wanted - free)
                predicted = torch.cat([mixed[:, :guided], wanted[:, guided:]], dim=1)
            x = self.scheduler.step(predicted, int(t), x).prev_sample
        images = (self._decoded(x).clamp(-1, 1) + 1) / 2
        if output_type == "pt":
            return ImagePipelineOutput(images=images)
        pixels = images.permute(0, 2, 3, 1).float().numpy()
        if output_type == "np":
            return ImagePipelineOutput(images=pixels)
        if pixels.shape[-1] == 1:
            pixels = np.repeat(pixels, 3, axis=-1)
        return ImagePipelineOutput(images=self.numpy_to_pil(pixels))

    def _in_parts(self, *inputs: torch.Tensor) -> torch.Tensor:
        most = self._facts["largest_batch"]
        parts = zip(*(tensor.split(most) for tensor in inputs), strict=True)
        return torch.cat([self._run(*part) for part in parts])

    def _decoded(self, x: torch.Tensor) -> torch.Tensor:
        vae = getattr(self, "vae", None)
        if vae is None:
            return x
        z = x / self.config.scaling + self.config.shift
        return torch.cat([vae.decode(part).sample for part in z.split(DECODED_AT_ONCE)])

"""The tables' backbones: a transformer and a CNN of comparable size, pretrained alike on the same images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, BackboneSpec
from affinery.backbones.dit import DiT
from affinery.backbones.files import save_backbone
from affinery.diffusion.schedule import NoiseSchedule, stratified_steps
from trainers.data import as_unit, load_split
from trainers.packs import read_manifest

DECAY = 0.999
DROPOUT = 0.1
SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
RECIPES = {"dit": {"mask_ratio": 0.5}, "unet": {"mask_ratio": 0.0}}


def spec_of(arch: str, size: int, channels: int, classes: tuple[str, ...], width: int) -> BackboneSpec:
    """About as many parameters for both: 2.87 M and 2.75 M at a width of 192, 78 classes, 32 × 32.

    At 16 × 16 the CNN has a third level, which most of its parameters are in, and costs a tenth.
    """
    small = size <= 16
    parts = (3, 6, 13) if small else (7, 13)
    configs: dict[str, dict[str, object]] = {
        "dit": {"width": width, "depth": 4, "heads": 4, "patch": size // 4 if size <= 16 else size // 8},
        "unet": {
            "in_channels": channels,
            "out_channels": channels,
            "down_block_types": ["DownBlock2D", *["DownBlock2D"] * small, "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", *["UpBlock2D"] * small, "UpBlock2D"],
            "block_out_channels": [8 * round(width * part / 192) for part in parts],
            "layers_per_block": 2,
            "norm_num_groups": 8,
        },
    }
    return BackboneSpec(
        arch=arch,
        config=configs[arch],
        class_names=classes,
        image_size=size,
        channels=channels,
        prediction="v_prediction",
        schedule=SCHEDULE,
        defaults={"recipe": RECIPES[arch]},
    )


def pretrain(
    arch: str,
    pack: Path,
    out: Path,
    *,
    size: int,
    channels: int,
    width: int,
    steps: int,
    batch: int,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] = lambda *_: None,
) -> Path:
    """Trains a backbone from nothing and writes the average of its weights; one that is there stays."""
    if out.exists():
        return out
    manifest = read_manifest(pack)
    images = load_split(pack, size, channels).train
    spec = spec_of(arch, size, channels, manifest.classes, width)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Backbone = architecture(arch).build(spec)
        if isinstance(model, DiT):
            model.initialise(generator)
    model.to(device)
    average = copy.deepcopy(model).freeze()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01
    )
    schedule = NoiseSchedule(spec)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))
        rows = torch.randint(len(images.labels), (batch,), generator=generator)
        x0 = as_unit(images.images[rows])
        drop = torch.rand(batch, generator=generator) < DROPOUT
        y = torch.where(drop, spec.null_index, images.labels[rows])
        t = stratified_steps(batch, schedule.steps, generator)
        noise = torch.randn(x0.shape, generator=generator)
        target = schedule.target(x0, t, noise)
        predicted = model(schedule.diffuse(x0, t, noise).to(device), t.to(device), y.to(device))
        loss = (predicted - target.to(device)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(DECAY, (step + 1) / (step + 10))
            for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        if (step + 1) % max(1, steps // 20) == 0:
            on_step(step + 1, steps, loss.item())
    out.parent.mkdir(parents=True, exist_ok=True)
    save_backbone(average.cpu(), out)
    return out

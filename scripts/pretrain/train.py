"""Pretrains the shipped backbone: a small DiT on garments, emoji and icons (see prepare.py).

    python scripts/pretrain/train.py pretraining.npz --out runs/garments --steps 12000

Writes `backbone.safetensors` (the average of the weights over the last steps), `loss.csv`, and every
`--save-every` steps a checkpoint from which the same command goes on.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from affinery.backbones.contract import BackboneSpec
from affinery.backbones.dit import DiT
from affinery.backbones.files import save_backbone
from affinery.diffusion.schedule import NoiseSchedule, stratified_steps

GARMENTS = 10
GARMENT_SHARE = 0.4
LABEL_DROPOUT = 0.1
EMA_DECAY = 0.9995


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """How often to draw each image: garments their share, other classes by the root of their size."""
    counts = torch.bincount(labels, minlength=classes).double()
    share = counts.sqrt()
    share[:GARMENTS] = GARMENT_SHARE / GARMENTS
    share[GARMENTS:] *= (1 - GARMENT_SHARE) / share[GARMENTS:].sum()
    return (share / counts)[labels]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 300 steps, then constant, then linear to zero over the last 30 %."""
    return peak * min(1.0, (step + 1) / 300, (steps - step) / (0.3 * steps))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = np.load(args.data)
    images = torch.from_numpy(data["images"])[:, None]  # (n, 1, 16, 16) bytes
    labels = torch.from_numpy(data["labels"])
    spec = BackboneSpec(
        arch="dit",
        config={"width": args.width, "depth": args.depth, "heads": 4, "patch": 4},
        class_names=tuple(str(name) for name in data["classes"]),
        image_size=images.shape[-1],
        channels=1,
        prediction="v_prediction",
        schedule={"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000},
    )
    generator = torch.Generator().manual_seed(args.seed)
    model = DiT.build(spec).initialise(generator)
    average = copy.deepcopy(model).freeze()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99)
    )
    schedule = NoiseSchedule(spec)
    weights = class_weights(labels, spec.num_classes)
    start, curve = 0, args.out / "loss.csv"
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        start = state["step"]
    total, began = 0.0, time.monotonic()
    for step in range(start, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        rows = torch.multinomial(weights, args.batch, replacement=True, generator=generator)
        x0 = images[rows].float() / 127.5 - 1
        flip = torch.rand(args.batch, generator=generator) < 0.5
        x0 = torch.where(flip[:, None, None, None], x0.flip(-1), x0)
        drop = torch.rand(args.batch, generator=generator) < LABEL_DROPOUT
        y = torch.where(drop, spec.null_index, labels[rows])
        t = stratified_steps(args.batch, schedule.steps, generator)
        noise = torch.randn(x0.shape, generator=generator)
        predicted = model(schedule.diffuse(x0, t, noise), t, y)
        loss = (predicted - schedule.target(x0, t, noise)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        total += loss.item()
        if (step + 1) % 100 == 0:
            rate = (step + 1 - start) / (time.monotonic() - began)
            print(f"step {step + 1:6d}/{args.steps}  loss {total / 100:.4f}  {rate:.2f} steps/s", flush=True)
            with curve.open("a", newline="") as file:
                csv.writer(file).writerow([step + 1, f"{total / 100:.6f}"])
            total = 0.0
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "step": step + 1,
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            save_backbone(average, args.out / "backbone.safetensors")


if __name__ == "__main__":
    main()

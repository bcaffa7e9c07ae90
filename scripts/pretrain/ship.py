"""Writes the shipped backbone and its model card from a finished pretraining.

    python scripts/pretrain/ship.py runs/garments --data pretraining.npz

The spec gets the settings that were found to suit this backbone.
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from trainers.pictures import loss_curve, png, tile, titled

ASSETS = Path("affinery_app/assets/backbones")
NAME = "tiny-dit"
DEFAULTS = {
    "sampler": {"steps": 25, "guidance": 1.3},
    "recipe": {"steps": 600, "batch": 64, "lr": 3e-3, "class_lr": 3e-2, "ema_decay": 0.99},
    "kinds": {"affiner": {"rank": 8}},
}
SHOWN = (
    "emoji face-smiling",
    "emoji animal-bird",
    "emoji food-fruit",
    "emoji heart",
    "icon weather",
    "icon arrow",
)
RATES = (
    "learning rate 1e-3 with warm-up, constant to step 5,500, then linear from 0.8e-3 to zero (the plan was "
    "shortened while it ran; `train.py --steps 7200` starts to decay at step 5,040)"
)
CARD = """# {name}

A class-conditional diffusion transformer (DiT) small enough to learn from on a laptop: {parameters:,}
parameters, 16 × 16 pixels, greyscale, {patch} × {patch} patches (16 tokens), width {width}, depth {depth},
{heads} heads, v-prediction on a cosine noise schedule. Fingerprint `{fingerprint}`.

| | |
|---|---|
| data | {images:,} images of {classes} classes, from the sources below |
| left out | emoji and icon groups that are letters, digits, clocks or brands; a few icons still bear a sign |
| steps | {steps:,} of batch 256, AdamW; {rates} |
| kept | the average of the weights (decay 0.9995) |
| seed | 0 |
| made with | `scripts/pretrain/prepare.py`, `train.py`, `ship.py`, on two CPU cores |
| final loss | {loss:.4f} (mean of the last {last} steps) |

Sources: Fashion-MNIST (Zalando, MIT; Debian's `dataset-fashion-mnist`), Noto emoji (Google, Apache-2.0;
npm's `emoji-datasource-google` 16.0.0), Material Design icons (Pictogrammers, Apache-2.0; npm's `@mdi/font`
7.4.47).

Each line below is one class. The first ten are garments: {garments}; then {others}.

![samples](tiny-dit.samples.png)

![loss](tiny-dit.loss.png)

What it is for: being adapted. As a picture model it is a toy; at 16 × 16 pixels, anything fine is gone.
"""


def grid(model: ComposedModel, out: Path) -> None:
    """Every garment, and a few of the other classes, in lines of sixteen."""
    names = model.spec.class_names
    wanted = [*names[:10], *(name for name in SHOWN if name in names)]
    parts = []
    for name in wanted:
        row = names.index(name)
        images = sample(model, [Draw(None, row, seed) for seed in range(16)], SamplerSettings(50, 1.25))
        parts.append((name, tile(images, 16)))
    out.write_bytes(png(titled(parts)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    backbone = load_backbone(args.run / "backbone.safetensors")
    backbone.spec = replace(backbone.spec, defaults=DEFAULTS)
    ASSETS.mkdir(parents=True, exist_ok=True)
    path = ASSETS / f"{NAME}.safetensors"
    save_backbone(backbone, path)
    found = inspect_backbone(path)
    with (args.run / "loss.csv").open() as file:
        curve = [(int(step), float(loss)) for step, loss in csv.reader(file)]
    (ASSETS / f"{NAME}.loss.png").write_bytes(loss_curve({"pretraining": curve}))
    grid(ComposedModel(load_backbone(path), found.fingerprint), ASSETS / f"{NAME}.samples.png")
    config = found.spec.config
    card = CARD.format(
        name=NAME,
        parameters=found.parameters,
        fingerprint=found.fingerprint,
        images=len(np.load(args.data)["labels"]),
        classes=found.spec.num_classes,
        steps=curve[-1][0],
        loss=curve[-1][1],
        last=100,
        garments=", ".join(found.spec.class_names[:10]),
        rates=RATES,
        others=", ".join(SHOWN),
        **config,
    )
    (ASSETS / f"{NAME}.md").write_text(card, encoding="utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes, fingerprint {found.fingerprint}")


if __name__ == "__main__":
    main()

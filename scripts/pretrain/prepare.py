"""Builds the pretraining set of the shipped backbone: garments, emoji and icons, 16 × 16, greyscale.

    python scripts/pretrain/prepare.py --fashion DIR --emoji DIR --icons DIR --out pretraining.npz

    --fashion  the folder `fashion-mnist` of Debian's package dataset-fashion-mnist (MIT)
    --emoji    the unpacked npm package emoji-datasource-google (images: Noto emoji, Apache-2.0)
    --icons    the unpacked npm package @mdi/font, with meta.json of @mdi/svg beside it (Apache-2.0)

Everything is bright on black. Whatever shows a letter or a digit is left out, so that the demo's tasks are
new to the backbone in kind, not only in name.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 16
CANVAS = 64
FASHION = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
EMOJI_LEFT_OUT = {
    "alphanum",
    "keycap",
    "punctuation",
    "math",
    "currency",
    "av-symbol",
    "skin-tone",
    "gender",
    "subdivision-flag",
    "other-symbol",
    "time",
    "warning",
}
ICONS_LEFT_OUT = {
    "Alpha / Numeric",
    "Text / Content / Format",
    "Math",
    "Brand / Logo",
    "Currency",
    "Date / Time",
}
SMALLEST_CLASS = 20


def idx(path: Path) -> np.ndarray:
    """One file of the MNIST family's IDX format → its array of bytes."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def variations(image: Image.Image, count: int, rng: np.random.Generator, mirrored: bool) -> list[np.ndarray]:
    """`count` copies of a 64 × 64 greyscale image, a little turned, scaled and shifted, at 16 × 16."""
    out = []
    for i in range(count):
        turn = 0.0 if i == 0 else float(rng.uniform(-15, 15))
        scale = 1.0 if i == 0 else float(rng.uniform(0.8, 1.1))
        dx, dy = (0.0, 0.0) if i == 0 else rng.uniform(-4, 4, 2)
        angle, centre = np.deg2rad(turn), CANVAS / 2
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        matrix = (
            *(cos, sin, centre - cos * (centre + dx) - sin * (centre + dy)),
            *(-sin, cos, centre + sin * (centre + dx) - cos * (centre + dy)),
        )
        moved = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        if mirrored and rng.random() < 0.5:
            moved = moved.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out.append(np.asarray(moved.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return out


def fashion(folder: Path) -> list[tuple[str, np.ndarray]]:
    images = idx(folder / "train-images-idx3-ubyte.gz")
    labels = idx(folder / "train-labels-idx1-ubyte.gz")
    small = [np.asarray(Image.fromarray(i).resize((SIDE, SIDE), Image.Resampling.BOX)) for i in images]
    return [(FASHION[label], image) for label, image in zip(labels, small, strict=True)]


def emoji(folder: Path, copies: int, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    out = []
    for entry in json.loads((folder / "emoji.json").read_text()):
        kind = entry["subcategory"]
        path = folder / "img/google/64" / entry["image"]
        if kind in EMOJI_LEFT_OUT or not path.exists():
            continue
        with Image.open(path) as opened:
            ink = opened.convert("RGBA").resize((CANVAS, CANVAS))
        black = Image.new("RGBA", ink.size, (0, 0, 0, 255))
        grey = Image.alpha_composite(black, ink).convert("L")
        out += [(f"emoji {kind}", image) for image in variations(grey, copies, rng, mirrored=True)]
    return out


def icons(folder: Path, copies: int, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    font = ImageFont.truetype(folder / "fonts/materialdesignicons-webfont.ttf", 56)
    out = []
    for entry in json.loads((folder / "meta.json").read_text()):
        tags = set(entry["tags"])
        name = entry["name"]
        if tags & ICONS_LEFT_OUT or any(part in name for part in ("alpha", "numeric", "letter", "roman")):
            continue
        canvas = Image.new("L", (CANVAS, CANVAS))
        ImageDraw.Draw(canvas).text(
            (32, 32), chr(int(entry["codepoint"], 16)), font=font, fill=255, anchor="mm"
        )
        kind = entry["tags"][0] if tags else "untagged"
        out += [(f"icon {kind.lower()}", image) for image in variations(canvas, copies, rng, mirrored=True)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("fashion", "emoji", "icons", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    pairs = fashion(args.fashion) + emoji(args.emoji, 16, rng) + icons(args.icons, 6, rng)
    counts = Counter(name for name, _ in pairs)
    names = [n for n in counts if counts[n] >= SMALLEST_CLASS]
    index = {name: i for i, name in enumerate(names)}
    kept = [(index[name], image) for name, image in pairs if name in index]
    images = np.stack([image for _, image in kept])
    labels = np.array([label for label, _ in kept], np.int64)
    np.savez_compressed(args.out, images=images, labels=labels, classes=np.array(names))
    print(f"{len(images)} images of {len(names)} classes → {args.out}")


if __name__ == "__main__":
    main()

"""Pictures of what a training did: grids of samples and curves of the loss."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from affinery import lettering

if TYPE_CHECKING:
    from PIL.Image import Image

INK, PAPER, GAP = (235, 235, 235), (24, 24, 27), 2
MARKED = 20  # up to so many points of a curve are marked


def tile(images: Tensor, columns: int, zoom: int = 3) -> Image:
    """(n, C, H, W) in [−1, 1] → one picture, `columns` images a line, each enlarged without smoothing."""
    from PIL import Image as Pillow

    count, channels, height, width = images.shape
    lines = -(-count // columns)
    cell_w, cell_h = width * zoom + GAP, height * zoom + GAP
    sheet = Pillow.new("RGB", (columns * cell_w + GAP, lines * cell_h + GAP), PAPER)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    for i in range(count):
        one = pixels[i].permute(1, 2, 0).numpy()
        picture = Pillow.fromarray(one[:, :, 0] if channels == 1 else one[:, :, :3])
        picture = picture.resize((width * zoom, height * zoom), Pillow.Resampling.NEAREST)
        sheet.paste(picture, (GAP + i % columns * cell_w, GAP + i // columns * cell_h))
    return sheet


def titled(parts: Sequence[tuple[str, Image]]) -> Image:
    """Pictures under each other, each below its title."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    font = lettering.font(15)
    parts = [(lettering.drawable(title, font), picture) for title, picture in parts]
    line = 28
    width = max(max(picture.width + 16, round(font.getlength(title)) + 20) for title, picture in parts)
    sheet = Pillow.new("RGB", (width, sum(picture.height + line + 8 for _, picture in parts) + 8), PAPER)
    pen, top = ImageDraw.Draw(sheet), 6
    for title, picture in parts:
        pen.text((10, top), title, fill=INK, font=font)
        sheet.paste(picture, (8, top + line))
        top += picture.height + line + 8
    return sheet


def png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def loss_curve(losses: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """By task, (step, loss) → a PNG of the curves."""
    return chart(losses, "step", "loss (L_simple)", "Training loss")


def chart(
    lines: Mapping[str, Sequence[Sequence[float]]], across: str, up: str, title: str, *, log: bool = False
) -> bytes:
    """By name, (x, y) → a PNG; where points are few, each is marked. log: whether y stands by its powers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    letters = lettering.letters_for([*lines, title])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        marker = "o" if len(points) <= MARKED else None
        x, y = [x for x, _ in points], [y for _, y in points]
        axes.plot(x, y, marker=marker, label=letters.spelt(name))
    axes.set(xlabel=across, ylabel=up)
    axes.set_title(letters.spelt(title), family=letters.families)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both" if log else "major")
    if lines:
        axes.legend(prop={"family": letters.families})
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def heat_map(
    rows: Sequence[Sequence[float | None]], down: Sequence[str], across: Sequence[str], title: str
) -> bytes:
    """A table of numbers as a PNG; what is not there stays empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    letters = lettering.letters_for([*down, *across, title])
    values = [[math.nan if value is None else value for value in row] for row in rows]
    figure = Figure(figsize=(2.5 + 1.1 * len(across), 1.5 + 0.6 * len(down)), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(values, cmap="viridis_r", aspect="auto")
    axes.set_xticks(range(len(across)), [letters.spelt(name) for name in across], rotation=30, ha="right")
    axes.set_yticks(range(len(down)), [letters.spelt(name) for name in down])
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontfamily(letters.families)
    axes.set_title(letters.spelt(title), family=letters.families)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is not None:
                box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5}
                axes.text(j, i, f"{value:.3g}", ha="center", va="center", bbox=box)
    figure.colorbar(picture)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()

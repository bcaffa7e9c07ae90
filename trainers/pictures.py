"""Pictures of what a training did: grids of samples and curves of the loss."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

INK, PAPER, GAP = (235, 235, 235), (24, 24, 27), 2


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
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(size=16)
    line = 28
    width = max(picture.width for _, picture in parts) + 16
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for task, points in losses.items():
        axes.plot([step for step, _ in points], [loss for _, loss in points], label=task.replace("$", r"\$"))
    axes.set(xlabel="step", ylabel="loss (L_simple)", title="Training loss")
    axes.grid(alpha=0.3)
    if losses:
        axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()

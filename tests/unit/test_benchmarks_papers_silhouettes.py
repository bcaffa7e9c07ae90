"""Silhouettes: maps from the pictures' transparency, seen again in samples."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from affinery.diffusion.sampling import Draw
from benchmarks.papers.data import write_pack
from benchmarks.papers.silhouettes import SILHOUETTE, ceiling, fidelity, seen
from trainers.data import Images, as_unit, load_split


def picture(number: int, figure: tuple[int, int, int] = (200, 90, 40)) -> bytes:
    """A disc on transparent ground that has a colour of its own."""
    made = Image.new("RGBA", (64, 64), (90, 200, 10, 0))
    ImageDraw.Draw(made).ellipse((8 + number, 8, 40 + number, 40), (*figure, 255))
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    listed = [("disc", f"{number}.png", picture(number)) for number in range(8)]
    write_pack(tmp_path / "pack", listed, "CC0", "a test", mapped=True)
    return tmp_path / "pack"


def learnt(pack: Path, channels: int) -> Images:
    return load_split(pack, 32, channels, SILHOUETTE).train


@pytest.mark.parametrize("channels", [1, 3])
def test_the_map_of_a_picture_is_where_it_is_opaque_and_is_found_again_in_it(
    pack: Path, channels: int
) -> None:
    real = learnt(pack, channels)
    assert real.conditions is not None
    assert real.conditions.shape == (len(real.labels), 3, 32, 32)
    share = (real.conditions.amax(dim=1) > 0).float().mean()
    assert 0.18 < float(share) < 0.23  # a disc of 33 pixels across, of 64 × 64
    assert ceiling(real)["miou"] > 0.9


def test_a_sample_is_held_against_the_map_that_it_was_told(pack: Path) -> None:
    real = learnt(pack, 1)
    assert real.conditions is not None
    told = tuple(Draw("t", 1, i, "", as_unit(each)) for i, each in enumerate(real.conditions))
    samples = as_unit(real.images)
    assert fidelity(samples, told)["miou"] == ceiling(real)["miou"]
    turned = tuple(reversed(told))
    assert fidelity(samples, turned)["miou"] < fidelity(samples, told)["miou"]
    nothing = torch.full_like(samples, -1)
    assert fidelity(nothing, told)["miou"] < 0.5  # the ground is found, no figure


def test_a_figure_as_black_as_its_ground_lowers_what_real_pictures_reach(tmp_path: Path) -> None:
    dark = [("disc", f"{number}.png", picture(number, (0, 0, 0))) for number in range(4)]
    write_pack(tmp_path / "pack", dark, "CC0", "a test", mapped=True)
    assert ceiling(learnt(tmp_path / "pack", 3))["miou"] < 0.5
    assert not seen(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).any()

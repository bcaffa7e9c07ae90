"""Conditions made from pictures: edges, and what a model of a local folder draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affinery.errors import ConfigInvalid, UnknownName
from tests.tiny_conditions import save_depth, save_segmentation
from trainers.conditions import canny, colour, condition_record, folder_digest, maker, published


def box(channels: int = 3, size: int = 32) -> np.ndarray:
    """A white box on black. (C, H, W)"""
    image = np.zeros((channels, size, size), np.uint8)
    image[:, 8:24, 8:24] = 255
    return image


@pytest.mark.parametrize("channels", [1, 3])
def test_canny_draws_the_outline_and_nothing_else(channels: int) -> None:
    edges = canny(box(channels))
    assert edges.shape == (1, 32, 32)
    assert set(np.unique(edges)) == {0, 255}
    assert edges[0, 12:20, 12:20].max() == 0
    assert edges[0, :6].max() == 0
    assert edges[0, 16].sum() == 2 * 255


def test_the_thresholds_are_recorded_and_obeyed() -> None:
    faint = (box() * 0.3).astype(np.uint8)
    record = condition_record("canny", 20, 40)
    assert record == {"name": "canny", "channels": 1, "source": "canny", "low": 20, "high": 40}
    assert maker(record)(faint).max() == 255
    assert maker(condition_record("canny", 900, 1000))(faint).max() == 0


def test_maps_come_with_the_dataset() -> None:
    assert condition_record("hed") == {"name": "hed", "channels": 1, "source": "maps"}
    assert condition_record("segmentation")["channels"] == 3
    with pytest.raises(ConfigInvalid, match="give its map"):
        maker(condition_record("depth"))


def test_conditions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'canny'"):
        condition_record("cany")
    for low, high in ((-1, 5), (6, 5), (0, 1001)):
        with pytest.raises(ConfigInvalid, match="thresholds"):
            condition_record("canny", low, high)
    with pytest.raises(ConfigInvalid, match="no thresholds"):
        condition_record("depth", 1)
    with pytest.raises(ConfigInvalid, match="computed"):
        condition_record("canny", model=tmp_path)
    with pytest.raises(ConfigInvalid, match="no transformers pipeline draws hed"):
        condition_record("hed", model=tmp_path)
    with pytest.raises(ConfigInvalid, match="names no architecture"):
        condition_record("depth", model=tmp_path)


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def segmentation_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_segmentation(tmp_path_factory.mktemp("segmentation"))


def noise(size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)


def test_a_depth_model_of_a_local_folder_draws_a_map_of_full_range(depth_model: Path) -> None:
    drawn = maker(condition_record("depth", model=depth_model))(noise())
    assert drawn.shape == (1, 32, 32)
    assert (drawn.min(), drawn.max()) == (0, 255)


def test_a_segmentation_model_paints_each_class_in_its_colour(segmentation_model: Path) -> None:
    drawn = maker(condition_record("segmentation", model=segmentation_model))(noise())
    assert drawn.shape == (3, 32, 32)
    painted = {tuple(pixel) for pixel in drawn.reshape(3, -1).T.tolist()}
    assert painted <= {colour(0), colour(1), colour(2), (0, 0, 0)}
    assert painted - {(0, 0, 0)}


def test_a_model_that_is_not_the_recorded_one_is_refused(depth_model: Path) -> None:
    record = condition_record("depth", model=depth_model) | {"digest": "0" * 64}
    with pytest.raises(ConfigInvalid, match="not the one that the task was given"):
        maker(record)


def test_a_model_of_another_purpose_is_refused(segmentation_model: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no model that draws depth"):
        condition_record("depth", model=segmentation_model)


def test_what_is_published_says_which_model_but_not_where_it_lies(depth_model: Path) -> None:
    record = published(condition_record("depth", model=depth_model))
    assert record == {
        "name": "depth",
        "channels": 1,
        "source": "model",
        "digest": folder_digest(depth_model),
    }
    assert published(None) is None


def test_the_first_colours_are_told_apart() -> None:
    colours = np.array([colour(label) for label in range(8)])
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    assert apart[~np.eye(8, dtype=bool)].min() > 60

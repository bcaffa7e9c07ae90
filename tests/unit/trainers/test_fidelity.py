"""Whether samples show what they were told, and whether they are copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.data import as_bytes, as_unit
from trainers.evaluation.fidelity import condition_fidelity, depth_error, edge_f1, mean_iou
from trainers.evaluation.neighbours import neighbours

CANNY = {"name": "canny", "channels": 1, "source": "canny", "low": 100, "high": 200}


def lines(*columns: int, size: int = 128) -> Tensor:
    found = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    found[..., list(columns)] = 255
    return found


def test_edges_one_pixel_beside_count_in_128_pixels_and_two_do_not() -> None:
    assert edge_f1(lines(2), lines(3))["f1"] == 1.0
    assert edge_f1(lines(2), lines(4))["f1"] == 0.0
    assert edge_f1(lines(2, size=16), lines(3, size=16))["f1"] == 0.0  # a pixel is much in a small picture
    half = edge_f1(lines(1), lines(1, 6))
    assert (half["precision"], half["recall"]) == (0.5, 1.0)
    assert half["f1"] == pytest.approx(2 / 3)
    assert edge_f1(lines(), lines())["f1"] == 0.0


def test_the_edges_of_a_picture_itself_are_the_edges_it_was_told() -> None:
    from trainers.conditions import canny

    picture = torch.full((1, 1, 16, 16), -1.0)
    picture[..., 4:12, 4:12] = 1.0
    told = as_unit(torch.from_numpy(canny(as_bytes(picture[0]).numpy())))
    found = condition_fidelity(CANNY, picture, [told])
    assert found is not None
    assert found["f1"] == 1.0
    blank = condition_fidelity(CANNY, torch.zeros_like(picture), [told])
    assert blank is not None
    assert blank["f1"] == 0.0


def test_maps_that_came_with_the_dataset_cannot_be_drawn_again_without_a_model() -> None:
    record = {"name": "depth", "channels": 1, "source": "maps"}
    assert condition_fidelity(record, torch.zeros(1, 1, 8, 8), [torch.zeros(1, 8, 8)]) is None


def test_the_overlap_is_the_mean_over_the_colours_that_were_told() -> None:
    wanted = torch.zeros(1, 3, 2, 4, dtype=torch.uint8)
    wanted[:, 0, :, 2:] = 200  # half black, half red
    found = wanted.clone()
    found[:, 0, :, 2] = 0  # a column of red is lost to black
    figures = mean_iou(wanted, found)
    assert figures["miou"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert figures["accuracy"] == 6 / 8


def test_depth_is_measured_up_to_scale_and_shift_but_not_upside_down() -> None:
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).reshape(1, 1, 4, 4)
    assert depth_error(ramp, ramp // 2 + 20)["rmse"] == pytest.approx(0, abs=1e-6)
    spread = float((ramp.double() / 255).std(correction=0))
    assert depth_error(ramp, 200 - ramp)["rmse"] == pytest.approx(spread)
    assert depth_error(ramp, torch.zeros_like(ramp))["rmse"] == pytest.approx(spread)


def pictures(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()


def test_copies_of_training_images_are_found_and_fresh_images_are_not() -> None:
    train, held_out = pictures(60, 0), pictures(100, 1)
    fresh = neighbours(as_unit(pictures(100, 2)), train, held_out)
    assert fresh.share is not None
    assert fresh.share <= 0.1
    copies = torch.cat([train[[7, 3]], pictures(2, 3)])
    found = neighbours(as_unit(copies), train, held_out)
    assert found.nearest[:2].tolist() == [7, 3]
    assert found.share == 0.5


def test_the_nearest_is_told_by_its_place_among_all_images_though_some_are_looked_at() -> None:
    train = pictures(20, 0)
    rows = torch.tensor([2, 5, 11])
    found = neighbours(as_unit(train[[11, 2]]), train, pictures(0, 1), rows)
    assert found.nearest.tolist() == [11, 2]


def test_without_images_kept_back_nothing_is_said_of_copies() -> None:
    found = neighbours(as_unit(pictures(3, 0)), pictures(5, 1), pictures(0, 2))
    assert (found.held_out_distance, found.share) == (None, None)

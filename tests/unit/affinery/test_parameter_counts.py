"""The parameter counts that the papers state, of the real sizes, counted without their weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from affinery.estimate import Estimator, Setup, spec_for

FLOWERS, CUB = 102, 200  # classes of the papers' data sets
WIDTH = 1152  # of DiT-XL/2, and so of its class rows


@cache
def estimator(arch: str, classes: int = 1) -> Estimator:
    return Estimator(spec_for(arch), Setup(classes=classes))


def count(kind: str, classes: int = FLOWERS, arch: str = "dit-xl-2", **values: Any) -> dict[str, int]:
    return estimator(arch, classes).count(kind, values)


def test_dit_xl_2_has_the_papers_size() -> None:
    assert estimator("dit-xl-2").parameters == 675_129_632


def test_the_affiners_shift_and_scale_have_one_number_an_output() -> None:
    assert count("affiner", 1, parts=["b"]) == {"b": 483_840, "class_rows": WIDTH}
    assert count("affiner", 1, parts=["a"]) == {"a": 483_840, "class_rows": WIDTH}


@pytest.mark.parametrize(
    ("rank", "parameters"), [(1, 741_888), (4, 2_967_552), (16, 11_870_208), (64, 47_480_832)]
)
def test_the_affiners_low_rank_branches_are_those_of_the_ablation(rank: int, parameters: int) -> None:
    found = count("affiner", 1, parts=["low-rank"], rank=rank)
    assert found == {"s": 140, "low-rank": parameters, "class_rows": WIDTH}  # one gate a layer


def test_a_whole_affiner_with_cubs_classes_has_the_papers_48_7_million() -> None:
    found = count("affiner", CUB)
    assert sum(found.values()) == 2 * 483_840 + 47_480_832 + 140 + CUB * WIDTH == 48_679_052
    assert round(sum(found.values()) / 1e6, 1) == 48.7


def test_full_fine_tuning_leaves_the_fixed_positions_and_the_backbones_own_class_rows() -> None:
    backbone = estimator("dit-xl-2")
    assert sum(count("full").values()) == 673_799_072
    fixed, own_rows = 256 * WIDTH, 1001 * WIDTH
    assert sum(count("full").values()) - FLOWERS * WIDTH == backbone.parameters - fixed - own_rows


@pytest.mark.parametrize(("rank", "millions"), [(8, 1.15), (16, 2.18)])
def test_lora_on_queries_keys_and_values_has_the_papers_size(rank: int, millions: float) -> None:
    assert round(sum(count("lora", rank=rank).values()) / 1e6, 2) == millions


@pytest.mark.parametrize("kind", ["adaptformer-parallel", "adaptformer-sequential"])
def test_adaptformer_has_the_papers_size(kind: str) -> None:
    assert round(sum(count(kind, rank=64).values()) / 1e6, 2) == 4.28


def test_bitfit_has_the_papers_size() -> None:
    assert round(sum(count("bitfit").values()) / 1e6, 3) == 0.607


@pytest.mark.parametrize(("blocks", "millions"), [(14, 0.771), (28, 0.803)])
def test_difffit_has_the_sizes_of_its_table_4(blocks: int, millions: float) -> None:
    assert round(sum(count("difffit", blocks=blocks).values()) / 1e6, 3) == millions


def test_difffit_has_two_factors_a_block_beside_those_of_the_layers() -> None:
    none = sum(count("difffit", blocks=0).values())
    assert round(none / 1e6, 3) == 0.738
    assert sum(count("difffit", blocks=14).values()) - none == 14 * 2 * WIDTH
    layers = 28 * (3 * WIDTH + WIDTH)  # queries, keys and values; the output projection
    assert count("difffit", blocks=0)["gamma"] == layers + 2304


def test_vpt_deep_has_the_papers_size_to_a_hundredth_of_a_million() -> None:
    as_in_the_paper = sum(count("vpt-deep", depth=5, tokens=1, gated=False).values())
    assert as_in_the_paper == 2_816_672  # the paper says 2.81 M, where rounding would give 2.82
    assert abs(as_in_the_paper / 1e6 - 2.81) < 0.01
    assert sum(count("vpt-deep", depth=5, tokens=1).values()) == as_in_the_paper + 5  # a gate a block


def test_affiners_on_the_down_blocks_of_stable_diffusion_have_6_76_million() -> None:
    found = count("affiner", 1, "sd15-unet", rank=32, targets=["down_blocks.*"])
    rows = found.pop("class_rows")
    assert round(sum(found.values()) / 1e6, 2) == 6.76
    assert rows == 1280

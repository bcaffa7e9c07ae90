"""Golden images: older tasks draw what they drew, to the bit, whatever has joined; a change is noticed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from affinery.adapters.files import Adapter
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw
from affinery.errors import ConfigInvalid, UnknownName
from tests import tiny_models as tiny
from tests import tiny_unets
from trainers.data import as_unit
from trainers.errors import GoldenUnreadable
from trainers.replay import RECORD_KEY, golden_bytes, read_golden, replay


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.safetensors"
    path.write_bytes(golden_bytes(tiny.composed(tiny.two_tasks()[0]), "digits", "here"))
    return path


def later() -> ComposedModel:
    """The model of a later day: a second and a much wider third task have joined, loaded in another order."""
    wide = tiny.adapter(tiny.meta("wide", (9, 13), rank=40), 5)
    one, two = tiny.two_tasks()
    return tiny.composed(wide, one, two)


def test_learning_later_tasks_leaves_an_older_tasks_images_bitwise_equal(golden: Path) -> None:
    found = replay(later(), golden, "here")
    assert (found.task, found.level, found.difference, found.same_environment) == (
        "digits",
        "bit-exact",
        0.0,
        True,
    )


def test_the_same_model_gives_the_same_golden_bytes(golden: Path) -> None:
    assert golden_bytes(tiny.composed(tiny.two_tasks()[0]), "digits", "here") == golden.read_bytes()


def nudged(by: float) -> ComposedModel:
    one, _ = tiny.two_tasks()
    return tiny.composed(type(one)(one.meta, {name: tensor + by for name, tensor in one.tensors.items()}))


def test_a_small_change_is_a_failure_here_and_a_tolerance_elsewhere(golden: Path) -> None:
    here, elsewhere = replay(nudged(1e-7), golden, "here"), replay(nudged(1e-7), golden, "elsewhere")
    assert here.level == "failed"
    assert 0 < here.difference < 1e-4
    assert (elsewhere.level, elsewhere.same_environment) == ("tolerance", False)


@pytest.mark.parametrize("environment", ["here", "elsewhere"])
def test_a_large_change_is_a_failure_everywhere(environment: str, golden: Path) -> None:
    assert replay(nudged(0.1), golden, environment).level == "failed"


def test_images_that_are_no_numbers_are_a_failure_everywhere(golden: Path) -> None:
    assert replay(nudged(float("nan")), golden, "elsewhere").level == "failed"


def test_the_number_of_threads_is_put_back(golden: Path) -> None:
    before = torch.get_num_threads()
    rewritten(golden, threads=2)
    replay(later(), golden, "here")
    assert torch.get_num_threads() == before


def test_a_task_that_is_not_in_the_model_is_told(golden: Path) -> None:
    with pytest.raises(UnknownName, match="digits"):
        replay(tiny.composed(tiny.two_tasks()[1]), golden, "here")


def rewritten(
    path: Path, record: str | None = None, images: torch.Tensor | None = None, **changes: Any
) -> Path:
    old = asdict(read_golden(path))
    text = json.dumps(old | changes) if record is None else record
    tensors = {"images": images if images is not None else load_file(path)["images"]}
    path.write_bytes(save(tensors, metadata={RECORD_KEY: text}))
    return path


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", "[" * 100_000, '{"task":"digits","task":"digits"}']
)
def test_a_record_that_is_none_is_refused(text: str, golden: Path) -> None:
    rewritten(golden, text)
    with pytest.raises(GoldenUnreadable):
        replay(later(), golden, "here")


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 0},
        {"threads": 10**9},
        {"threads": "2"},
        {"rows": 3},
        {"rows": ["a"] * 8},
        {"rows": [4] * 7},
        {"sampler": []},
        {"sampler": {"steps": 3, "speed": 1}},
        {"sampler": {"steps": "three"}},
        {"sampler": {"steps": 0}},
        {"task": 3},
        {"seed": 1.5},
        {"rows": []},
        {"rows": [7] * 8},
        {"sampler": {"steps": 2000}},
        {"rows": [10**30] * 8},
    ],
)
def test_a_record_of_values_that_cannot_be_is_refused(changes: dict[str, Any], golden: Path) -> None:
    rewritten(golden, **changes)
    with pytest.raises(GoldenUnreadable):
        replay(later(), golden, "here")


def test_images_of_another_size_are_refused(golden: Path) -> None:
    rewritten(golden, images=torch.zeros(8, 1, 4, 4))
    with pytest.raises(GoldenUnreadable, match="not of this backbone's size"):
        replay(later(), golden, "here")


def test_the_seed_and_the_sampler_are_those_of_the_record(golden: Path) -> None:
    rewritten(golden, seed=1)
    assert replay(later(), golden, "here").level == "failed"


def test_a_missing_a_torn_and_another_file_are_refused(golden: Path) -> None:
    whole = golden.read_bytes()
    for content in (whole[:-1], whole[:3], b"PNG" * 99, b""):
        golden.write_bytes(content)
        with pytest.raises(GoldenUnreadable):
            replay(later(), golden, "here")
    golden.unlink()
    with pytest.raises(GoldenUnreadable, match="No such file"):
        replay(later(), golden, "here")


CANNY = {"name": "canny", "channels": 1}


def told_model(*later: Adapter) -> ComposedModel:
    """A text U-Net with a task that is told edges."""
    spec = tiny_unets.text_spec()
    edges = tiny.adapter(tiny.meta("edges", (4, 5), condition=CANNY), 1, tiny_unets.built(spec))
    return tiny.composed(edges, *later, base=tiny_unets.built(spec))


def told_draws() -> list[Draw]:
    """Three captions with three pictures, of whole bytes as they come from a dataset."""
    bytes_ = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return [Draw("edges", 4, i, prompt, as_unit(bytes_[i])) for i, prompt in enumerate(("a b", "", "abc"))]


@pytest.fixture
def told(tmp_path: Path) -> Path:
    path = tmp_path / "told.safetensors"
    path.write_bytes(golden_bytes(told_model(), "edges", "here", told_draws()))
    return path


def test_conditions_and_captions_are_replayed_from_the_file_beside_later_tasks(told: Path) -> None:
    assert read_golden(told).prompts == ("a b", "", "abc", "a b", "", "abc", "a b", "")
    assert load_file(told)["conditions"].shape == (8, 1, 8, 8)
    spec = tiny_unets.text_spec()
    other = tiny.adapter(
        tiny.meta("maps", (5, 7), condition={"name": "segmentation", "channels": 3}),
        2,
        tiny_unets.built(spec),
    )
    assert replay(told_model(other), told, "here").level == "bit-exact"


def test_a_stem_that_was_changed_is_noticed(told: Path) -> None:
    model = told_model()
    stem = model.task("edges").stem
    assert stem is not None
    with torch.no_grad():
        stem.gate.add_(1e-3)
    assert replay(model, told, "here").level == "failed"


@pytest.mark.parametrize(
    "conditions", [None, torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, 1, 8, 8)]
)
def test_conditions_that_are_not_the_tasks_are_refused(told: Path, conditions: torch.Tensor | None) -> None:
    tensors = load_file(told)
    del tensors["conditions"]
    if conditions is not None:
        tensors["conditions"] = conditions
    told.write_bytes(save(tensors, metadata={RECORD_KEY: read_golden(told).to_json()}))
    with pytest.raises(GoldenUnreadable, match="its conditions are missing, or not those of this task"):
        replay(told_model(), told, "here")


def test_a_condition_task_has_no_golden_images_without_a_picture() -> None:
    with pytest.raises(ConfigInvalid, match="cannot be drawn without a picture"):
        golden_bytes(told_model(), "edges", "here")


def test_the_golden_file_of_a_class_task_says_nothing_of_captions(golden: Path) -> None:
    assert "prompts" not in read_golden(golden).to_json()
    assert load_file(golden).keys() == {"images"}

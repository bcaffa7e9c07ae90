"""Data-parallel training: real processes over gloo, and the result of one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from affinery.adapters.files import Adapter, adapter_bytes, read_adapter
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny
from tests.unit.trainers.test_loop import DIGITS, LETTERS, MASKED, trained
from trainers.data import as_unit
from trainers.loop import CoTraining
from trainers.ranks import ALONE, Ranks
from trainers.recipe import Recipe
from trainers.streams import TaskData

TOGETHER = """
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from affinery.adapters.files import adapter_bytes
from tests.unit.trainers.test_ranks import RECIPES, start
from trainers.ranks import ranks

folder, rank, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count)
sent = []
whole = dist.all_reduce
dist.all_reduce = lambda message: (sent.append(message.numel()), whole(message))
for name, (recipe, precision) in RECIPES.items():
    run = start(recipe, precision, ranks())
    losses = [run.train_step() for _ in range(recipe.steps)]
    (folder / f"{name}-{rank}.losses").write_text(repr(losses[-1]))
    assert max(sent) == sum(tensor.numel() for tensor in run.trained().values()) + 2, sent
    for i, adapter in enumerate(run.finish()):
        (folder / f"{name}-{rank}-{i}.safetensors").write_bytes(adapter_bytes(adapter))
assert ranks().as_first(rank == 0, rank == 1) == (True, False)
"""
UNEVEN = replace(MASKED, steps=40, batch=7, mask_ratio=0.0)  # what two cannot share evenly
TIGHT = replace(MASKED, clip_norm=1e-3, weight_decay=0.1)
RECIPES = {
    "masked": (MASKED, torch.float32),
    "tight": (TIGHT, torch.float32),
    "exact": (replace(MASKED, steps=20), torch.float64),
    "uneven": (UNEVEN, torch.float64),
}


def start(recipe: Recipe, precision: torch.dtype, ranks: Ranks) -> CoTraining:
    model = ComposedModel(tiny.backbone().to(precision), tiny.FINGERPRINT)
    return CoTraining(model, [as_precise(task, precision) for task in (DIGITS, LETTERS)], recipe, ranks)


def as_precise(task: TaskData, precision: torch.dtype) -> TaskData:
    return replace(task, images=as_unit(task.images).to(precision))


def apart(one: Adapter, other: Adapter) -> float:
    """The length of all that differs, relative to the length of all."""
    assert one.tensors.keys() == other.tensors.keys()
    mine, theirs = (
        torch.cat([adapter.tensors[name].flatten() for name in one.tensors]).double()
        for adapter in (one, other)
    )
    return float((mine - theirs).norm() / mine.norm())


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of the same two tasks, together."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-c", TOGETHER, str(folder)]
    both = [subprocess.Popen([*command, str(rank), "2"], stderr=subprocess.PIPE) for rank in range(2)]
    talk = [process.communicate(timeout=120)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], talk
    return folder


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.slow
def test_two_processes_make_of_a_task_what_one_makes_of_it(parts: Path, name: str) -> None:
    """To the rounding of the numbers; in double precision, where it is out of sight, to far less."""
    recipe, precision = RECIPES[name]
    run = start(recipe, precision, ALONE)
    run.run()
    for i, alone in enumerate(run.finish()):
        together = read_adapter(parts / f"{name}-0-{i}.safetensors")
        assert apart(alone, together) <= (1e-5 if precision == torch.float32 else 1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_all_processes_hold_the_same_to_the_bit_and_tell_the_same_losses(parts: Path, name: str) -> None:
    for i in range(2):
        one, other = ((parts / f"{name}-{rank}-{i}.safetensors").read_bytes() for rank in range(2))
        assert one == other
    assert len({(parts / f"{name}-{rank}.losses").read_text() for rank in range(2)}) == 1


def test_a_batch_is_shared_out_whole_and_what_cannot_be_shared_is_refused() -> None:
    for batch in (3, 7, 8):
        shared = [i for rank in range(3) for i in range(batch)[Ranks(rank, 3).part(batch)]]
        assert shared == list(range(batch))
    with pytest.raises(ConfigInvalid, match="cannot share a batch of 2"):
        Ranks(0, 3).part(2)


def test_a_process_alone_sends_nothing_and_trains_the_bytes_that_it_always_did() -> None:
    untouched = torch.ones(3)
    ALONE.sum([untouched])
    assert ALONE.as_first(True, False) == (True, False)
    assert torch.equal(untouched, torch.ones(3))
    first, second = (trained([DIGITS], MASKED) for _ in range(2))
    assert adapter_bytes(first[0]) == adapter_bytes(second[0])

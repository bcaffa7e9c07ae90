"""A training from its plan: checked before it starts, advanced in stretches, resumed after a kill."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

from affinery.adapters.files import read_adapter
from affinery.backbones.files import inspect_backbone, save_backbone
from affinery.composed import ComposedModel
from affinery.errors import AdapterBackboneMismatch, BackboneFileInvalid, ConfigInvalid, UnknownName
from tests import tiny_models as tiny
from trainers.checkpoints import checkpoints_in
from trainers.errors import CheckpointUnreadable, DatasetChanged
from trainers.packs import PackWriter
from trainers.pictures import loss_curve, png, tile, titled
from trainers.plan import PlannedTask, TrainingPlan
from trainers.recipe import Recipe
from trainers.session import TrainingSession, adapter_name


def planned(folder: Path, name: str, block: tuple[int, int], seed: int) -> PlannedTask:
    """A task with a pack of random pictures, of sizes of their own."""
    pack = folder / name
    pack.mkdir()
    rng = np.random.default_rng(seed)
    names = tuple(f"{name} {i}" for i in range(block[1] - block[0]))
    with PackWriter(pack, names, "CC0", "made here") as writer:
        for label in range(len(names)):
            for i in range(6):
                size = 8 + seed
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (size, size + i), np.uint8)).save(buffer, "PNG")
                writer.add(
                    buffer.getvalue(),
                    label,
                    extension="png",
                    width=size + i,
                    height=size,
                    mode="L",
                    source_name=f"{i}.png",
                )
        digest = writer.finish().digest
    return PlannedTask(name, "affiner", {"rank": 2}, str(pack), digest, block, names)


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    save_backbone(tiny.backbone(), tmp_path / "backbone")
    fingerprint = inspect_backbone(tmp_path / "backbone").fingerprint
    tasks = planned(tmp_path, "digits", (4, 6), 0), planned(tmp_path, "letters", (6, 9), 3)
    recipe = Recipe(steps=7, batch=4, warmup=1)
    return TrainingPlan(str(tmp_path / "backbone"), fingerprint, tasks, recipe, report_every=3, save_every=3)


def finished(session: TrainingSession, folder: Path) -> list[bytes]:
    while not session.advance().done:
        pass
    session.save(folder)
    return [(folder / adapter_name(i)).read_bytes() for i in range(len(session.plan.tasks))]


def test_a_training_advances_from_report_to_report(plan: TrainingPlan) -> None:
    session = TrainingSession(plan)
    progress = [session.advance() for _ in range(3)]
    assert [(at.step, at.steps, at.done) for at in progress] == [(3, 7, False), (6, 7, False), (7, 7, True)]
    assert all(at.losses.keys() == {"digits", "letters"} for at in progress)
    assert all(math.isfinite(loss) and loss > 0 for at in progress for loss in at.losses.values())
    assert session.advance().step == 7


def test_the_finished_adapters_lie_beside_the_last_checkpoint(plan: TrainingPlan, tmp_path: Path) -> None:
    finished(TrainingSession(plan), tmp_path / "end")
    adapters = [read_adapter(tmp_path / "end" / adapter_name(i)) for i in range(2)]
    for adapter, task in zip(adapters, plan.tasks, strict=True):
        assert adapter.meta.task == task.name
        assert adapter.meta.block == task.block
        assert adapter.meta.class_names == task.class_names
        assert adapter.meta.backbone == plan.fingerprint
        assert adapter.meta.config == task.config
    model = ComposedModel(tiny.backbone(), plan.fingerprint)
    assert [model.load(adapter).slot for adapter in adapters] == [1, 2]


def test_a_training_in_the_middle_has_a_checkpoint_and_no_adapters(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    session = TrainingSession(plan)
    session.advance()
    session.save(tmp_path / "middle")
    assert sorted(path.name for path in (tmp_path / "middle").iterdir()) == [
        "state.json",
        "state.safetensors",
    ]


def test_resumed_in_a_new_process_a_training_ends_with_the_same_bytes(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    whole = finished(TrainingSession(plan), tmp_path / "whole")
    killed = TrainingSession(plan)
    killed.advance()
    killed.save(tmp_path / "kept")
    resumed = TrainingSession(TrainingPlan.from_json(plan.to_json()))
    resumed.restore(tmp_path / "kept")
    assert resumed.step == 3
    assert finished(resumed, tmp_path / "resumed") == whole


def test_tasks_join_and_leave_a_session_and_it_resumes_with_all_of_them(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    late = planned(tmp_path, "late", (9, 11), 5)
    session = TrainingSession(plan)
    session.advance()
    session.join(late)
    session.advance()
    session.leave("digits")
    session.save(tmp_path / "kept")
    resumed = TrainingSession(replace(plan, tasks=(*plan.tasks, late)))
    resumed.restore(tmp_path / "kept")
    ends = [finished(one, tmp_path / name) for name, one in (("whole", session), ("resumed", resumed))]
    assert ends[0] == ends[1]
    assert session.step == 3 + plan.recipe.steps
    alone = TrainingSession(replace(plan, tasks=(late,)))
    [adapter] = finished(alone, tmp_path / "alone")
    tensors = [load(one) for one in (adapter, ends[0][2])]
    for name, tensor in tensors[0].items():
        assert float((tensor - tensors[1][name]).abs().max()) <= 1e-5 * float(tensor.abs().max() + 0.01)


def test_resumed_after_its_end_a_training_hands_out_the_same_adapters(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    whole = finished(TrainingSession(plan), tmp_path / "end")
    again = TrainingSession(plan)
    again.restore(tmp_path / "end")
    assert again.advance().done
    assert finished(again, tmp_path / "again") == whole


def test_a_save_that_ends_early_leaves_nothing_that_calls_itself_finished(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    session = TrainingSession(plan)
    while not session.advance().done:
        pass
    (tmp_path / "end" / "state.safetensors").mkdir(parents=True)  # what cannot be written to
    with pytest.raises(OSError, match="directory"):
        session.save(tmp_path / "end")
    assert (tmp_path / "end" / adapter_name(1)).is_file()
    assert list(checkpoints_in(tmp_path)) == []


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path: Path) -> None:
    """One bit in the middle, where a file of tensors holds numbers and a record says something."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [truncated, flipped, Path.unlink], ids=["truncated", "flipped", "gone"])
@pytest.mark.parametrize("name", ["adapter-0.safetensors", "state.safetensors", "state.json"])
def test_a_checkpoint_of_which_any_file_is_torn_is_told_and_passed_over_for_the_one_before(
    plan: TrainingPlan, tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    session = TrainingSession(plan)
    session.advance()
    session.save(tmp_path / "before")
    finished(session, tmp_path / "end")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["end", "before"]
    spoil(tmp_path / "end" / name)
    told: list[str] = []
    assert [path.name for path in checkpoints_in(tmp_path, lambda torn: told.append(str(torn)))] == ["before"]
    if (name, spoil) != ("state.json", Path.unlink):  # without its record it never was a checkpoint
        [line] = told
        assert line.startswith(f"The checkpoint in {tmp_path / 'end'} cannot be used: its {name} ")
    with pytest.raises(CheckpointUnreadable):
        TrainingSession(plan).restore(tmp_path / "end")


def test_a_checkpoint_of_another_plan_is_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    session = TrainingSession(plan)
    session.save(tmp_path / "kept")
    other = TrainingSession(replace(plan, recipe=replace(plan.recipe, seed=1)))
    with pytest.raises(CheckpointUnreadable, match="belongs to another training"):
        other.restore(tmp_path / "kept")


def test_a_changed_dataset_is_refused_before_anything_is_trained(plan: TrainingPlan) -> None:
    archive = Path(plan.tasks[1].pack) / "images.zip"
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DatasetChanged, match="not the one that was pinned"):
        TrainingSession(plan)


def test_another_backbone_than_planned_is_refused(plan: TrainingPlan) -> None:
    save_backbone(tiny.backbone(seed=4), Path(plan.backbone_file))
    with pytest.raises(AdapterBackboneMismatch):
        TrainingSession(plan)
    Path(plan.backbone_file).unlink()
    with pytest.raises(BackboneFileInvalid, match="no such file"):
        TrainingSession(plan)


def test_tasks_of_several_kinds_train_together(plan: TrainingPlan) -> None:
    one, two = plan.tasks
    session = TrainingSession(replace(plan, tasks=(one, replace(two, kind="lora", config={"rank": 2}))))
    assert session.advance().losses.keys() == {one.name, two.name}


def test_an_unknown_kind_is_refused(plan: TrainingPlan) -> None:
    one, _ = plan.tasks
    with pytest.raises(UnknownName, match="adapter kind"):
        TrainingSession(replace(plan, tasks=(replace(one, kind="affinerr"),)))


def test_rows_that_the_task_does_not_own_are_refused(plan: TrainingPlan) -> None:
    one, two = plan.tasks
    with pytest.raises(ConfigInvalid, match="claim the same class rows"):
        TrainingSession(replace(plan, tasks=(one, replace(two, block=(5, 8)))))
    with pytest.raises(ConfigInvalid, match="after the null row"):
        TrainingSession(replace(plan, tasks=(replace(one, block=(2, 4)),)))


def test_classes_that_are_not_the_packs_are_refused(plan: TrainingPlan) -> None:
    """A pack of two classes trained as one of three would learn a class from nothing."""
    one = plan.tasks[0]
    with pytest.raises(ConfigInvalid, match="its classes are not those"):
        TrainingSession(replace(plan, tasks=(replace(one, block=(4, 7), class_names=("a", "b", "c")),)))
    with pytest.raises(ConfigInvalid, match="its classes are not those"):
        TrainingSession(replace(plan, tasks=(replace(one, class_names=("digits 1", "digits 0")),)))


def test_no_tasks_are_refused(plan: TrainingPlan) -> None:
    with pytest.raises(ConfigInvalid):
        TrainingSession(replace(plan, tasks=()))


def test_pictures_are_drawn_of_samples_and_losses() -> None:
    model = tiny.composed(*tiny.two_tasks())
    from affinery import draw

    images = draw(model, "digits", 0, n=5, steps=2)
    sheet = tile(images, columns=3, zoom=2)
    assert sheet.size == (3 * 18 + 2, 2 * 18 + 2)
    whole = titled([("digits $x_1$ ü", sheet), ("again", tile(images.expand(-1, 3, -1, -1), 2))])
    for content in (png(whole), loss_curve({"a $b": [(1, 0.5), (2, 0.25)]}), loss_curve({})):
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.format == "PNG"
            assert min(opened.size) > 10


def test_black_and_white_stay_what_they_are_in_a_picture() -> None:
    import torch

    shades = torch.tensor([-1.0, 1.0, 5.0])[:, None, None, None].expand(3, 1, 2, 2)
    sheet = np.asarray(tile(shades, columns=3, zoom=1))
    assert [int(sheet[2, 2 + 4 * i, 0]) for i in range(3)] == [0, 255, 255]


def test_a_title_that_is_wider_than_its_picture_is_whole() -> None:
    narrow = Image.new("RGB", (20, 20))
    whole = np.asarray(titled([("a task of two classes, drawn small", narrow)]).convert("L"), np.int16)
    ink = (abs(whole - whole[0, 0]) > 60).any(axis=0).nonzero()[0]
    assert whole.shape[1] - ink[-1] > 5
    assert ink[-1] > 150

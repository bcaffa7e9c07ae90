"""Training: tasks and backbone feel nothing of each other, and a broken run ends like an unbroken one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from affinery import draw
from affinery.adapters.files import Adapter, AdapterMeta, adapter_bytes
from affinery.adapters.routing import Plan
from affinery.backbones.contract import BackboneSpec
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny
from tests import tiny_unets
from trainers.checkpoints import checkpoints_in, restore_checkpoint, save_checkpoint
from trainers.errors import CheckpointUnreadable, TrainingDiverged
from trainers.loop import CoTraining
from trainers.recipe import Recipe
from trainers.streams import Captions, TaskData, TaskStream

MASKED = Recipe(steps=6, batch=8, warmup=2, mask_ratio=0.5, unmasked_share=0.34, seed=5)
UNMASKED = replace(MASKED, mask_ratio=0.0)
both = pytest.mark.parametrize("recipe", [MASKED, UNMASKED], ids=["masked", "unmasked"])


def data(meta: AdapterMeta, images_a_class: int = 7) -> TaskData:
    """Random images, other ones for every task."""
    classes = len(meta.class_names)
    generator = torch.Generator().manual_seed(sum(meta.task.encode()))
    images = torch.randint(
        0, 256, (classes * images_a_class, 1, 8, 8), generator=generator, dtype=torch.uint8
    )
    return TaskData(meta, images, torch.arange(len(images)) % classes)


DIGITS = data(tiny.meta("digits", (4, 6), 2))
LETTERS = data(tiny.meta("letters", (6, 11), 3), 4)
ANIMALS = data(tiny.meta("animals", (20, 21), 5), 9)


def training(tasks: Sequence[TaskData], recipe: Recipe) -> CoTraining:
    return CoTraining(ComposedModel(tiny.backbone(), tiny.FINGERPRINT), tasks, recipe)


def trained(tasks: Sequence[TaskData], recipe: Recipe) -> list[Adapter]:
    run = training(tasks, recipe)
    run.run()
    return run.finish()


def furthest(one: Adapter, other: Adapter) -> float:
    """The largest difference of any tensor, relative to the largest value of that part in any layer."""
    assert one.tensors.keys() == other.tensors.keys()
    largest: dict[str, float] = {}
    apart: dict[str, float] = {}
    for name, tensor in one.tensors.items():
        part = name.split(".")[-1]
        largest[part] = max(largest.get(part, 0), float(tensor.abs().max()))
        apart[part] = max(apart.get(part, 0), float((tensor - other.tensors[name]).abs().max()))
    return max(apart[part] / largest[part] for part in apart)


@both
def test_training_together_gives_what_training_alone_gives(recipe: Recipe) -> None:
    for together in ([DIGITS, LETTERS], [LETTERS, DIGITS], [DIGITS, LETTERS, ANIMALS]):
        for task, adapter in zip(together, trained(together, recipe), strict=True):
            [alone] = trained([task], recipe)
            assert adapter.meta == alone.meta
            assert furthest(alone, adapter) <= 1e-5


def test_after_many_steps_too_nothing_of_the_others_has_seeped_in() -> None:
    """Directions without effect, as a shift of all keys, must not drift with the rounding of the batch."""
    long = replace(MASKED, steps=60)
    together, alone = trained([DIGITS, LETTERS, ANIMALS], long), trained([DIGITS], long)
    assert furthest(alone[0], together[0]) <= 1e-5


def test_training_together_gives_the_losses_of_training_alone() -> None:
    together, alone = training([DIGITS, LETTERS], MASKED), training([LETTERS], MASKED)
    for _ in range(4):
        assert together.train_step()["letters"] == pytest.approx(alone.train_step()["letters"], rel=1e-5)


def test_clipping_one_task_does_not_reach_another() -> None:
    """One task's huge gradients are cut; the other's step is that of its training alone."""
    tight = replace(UNMASKED, clip_norm=1e-3)
    bright = replace(DIGITS, images=torch.full_like(DIGITS.images, 255))
    _, beside = trained([bright, LETTERS], tight)
    [alone] = trained([LETTERS], tight)
    assert furthest(alone, beside) <= 1e-5


@both
def test_the_same_training_twice_gives_the_same_bytes(recipe: Recipe) -> None:
    first, second = (trained([DIGITS, LETTERS], recipe) for _ in range(2))
    assert [adapter_bytes(one) for one in first] == [adapter_bytes(one) for one in second]


def test_another_seed_gives_another_adapter() -> None:
    assert furthest(*trained([DIGITS], MASKED), *trained([DIGITS], replace(MASKED, seed=6))) > 1e-3


@both
def test_training_changes_no_byte_of_the_backbone(recipe: Recipe) -> None:
    run = training([DIGITS, LETTERS], replace(recipe, weight_decay=0.1))
    before = {name: tensor.numpy().tobytes() for name, tensor in run.model.frozen_state().items()}
    run.run()
    run.finish()
    assert {name: t.numpy().tobytes() for name, t in run.model.frozen_state().items()} == before
    assert before == tiny.digests(tiny.backbone())


def test_the_null_row_never_trains_and_every_class_row_does() -> None:
    run = training([DIGITS, LETTERS], replace(MASKED, steps=12))
    null = run.model.class_table()[run.model.null_row].clone()
    run.run()
    run.finish()
    table = run.model.class_table()
    assert torch.equal(table[run.model.null_row], null)
    assert all(not torch.equal(table[row], null) for row in range(4, 11))


def test_only_what_is_declared_as_trained_has_gradients() -> None:
    run = training([DIGITS, LETTERS], MASKED)
    run.train_step()
    rows = {id(run.model.task(name).rows) for name in ("digits", "letters")}
    assert {id(p) for p in run.model.parameters() if p.requires_grad or p.grad is not None} == rows
    memory = {tensor.untyped_storage().data_ptr() for tensor in run.trained().values()}
    banks = [bank for group in run.model.groups.values() for bank in run.model.banks(group).values()]
    exposed = [tensor for bank in banks for tensor in bank.exposed.values()]
    assert sum(tensor.numel() for tensor in exposed) == sum(
        tensor.numel() for name, tensor in run.trained().items() if "class_rows" not in name
    )
    assert {tensor.untyped_storage().data_ptr() for tensor in exposed} < memory


def test_every_part_of_an_adapter_has_moved_after_training() -> None:
    run = training([DIGITS], MASKED)
    start = run.model.adapter("digits").tensors
    run.run()
    [end] = run.finish()
    assert all(not torch.equal(tensor, start[name]) for name, tensor in end.tensors.items())


def test_slot_zero_stays_the_untouched_backbone() -> None:
    run = training([DIGITS, LETTERS], replace(MASKED, weight_decay=0.1))
    run.run()
    for group in run.model.groups.values():
        for bank in run.model.banks(group).values():
            assert all(bool((tensor == 0).all()) for tensor in bank.tensors(0).values())


def test_images_are_learnt() -> None:
    """Two classes, black and white: the loss falls, and what is drawn has the class's brightness."""
    images = torch.cat([torch.zeros(8, 1, 8, 8), torch.full((8, 1, 8, 8), 255.0)]).byte()
    plain = TaskData(tiny.meta("shades", (4, 6), 4), images, torch.tensor([0] * 8 + [1] * 8))
    run = training([plain], Recipe(steps=150, batch=32, lr=5e-3, class_lr=3e-2, label_dropout=0.1))
    losses = [run.train_step()["shades"] for _ in range(150)]
    run.finish()
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    black, white = (draw(run.model, "shades", label, n=8).mean() for label in (0, 1))
    assert float(white - black) > 0.2


@both
@pytest.mark.parametrize("at", [1, 3, 5])
def test_resumed_from_a_checkpoint_a_training_ends_with_the_same_bytes(
    at: int, recipe: Recipe, tmp_path: Path
) -> None:
    whole = [adapter_bytes(adapter) for adapter in trained([DIGITS, LETTERS], recipe)]
    first = training([DIGITS, LETTERS], recipe)
    for _ in range(at):
        first.train_step()
    save_checkpoint(first, tmp_path)
    first.train_step()  # what happens after the checkpoint is lost, and must not matter
    second = training([DIGITS, LETTERS], recipe)
    restore_checkpoint(second, tmp_path)
    assert second.step == at
    second.run()
    assert [adapter_bytes(adapter) for adapter in second.finish()] == whole


def test_restored_into_a_training_that_is_further_on_a_checkpoint_still_holds(tmp_path: Path) -> None:
    whole = [adapter_bytes(adapter) for adapter in trained([DIGITS], MASKED)]
    run = training([DIGITS], MASKED)
    save_checkpoint(run, tmp_path / "start")
    run.train_step()
    run.train_step()
    restore_checkpoint(run, tmp_path / "start")
    run.run()
    assert [adapter_bytes(adapter) for adapter in run.finish()] == whole


def state(run: CoTraining) -> dict[str, bytes]:
    found = {name: tensor.detach().numpy().tobytes() for name, tensor in run.trained().items()}
    for one in run.learners:
        found |= {f"average {one.name} {n}": t.numpy().tobytes() for n, t in one.averages.items()}
        found[f"stream {one.name}"] = one.stream.generator.get_state().numpy().tobytes()
        found[f"standing {one.name}"] = repr(one.standing).encode()
    return found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run = training([DIGITS, LETTERS], MASKED)
    run.train_step()
    save_checkpoint(run, tmp_path)
    return tmp_path


def torn_tensors(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flipped_bit(folder: Path) -> None:
    content = bytearray((folder / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "state.safetensors").write_bytes(content)


def torn_record(folder: Path) -> None:
    path = folder / "state.json"
    path.write_bytes(path.read_bytes()[:50])


def listed_record(folder: Path) -> None:
    (folder / "state.json").write_text("[]")


def no_tensors(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


def no_record(folder: Path) -> None:
    (folder / "state.json").unlink()


def newer_tensors(folder: Path) -> None:
    """Killed between the two files, in a folder that was written to before."""
    run = training([DIGITS, LETTERS], MASKED)
    save_checkpoint(run, folder / "newer")
    (folder / "newer" / "state.safetensors").replace(folder / "state.safetensors")


@pytest.mark.parametrize(
    "spoil",
    [torn_tensors, flipped_bit, torn_record, listed_record, no_tensors, no_record, newer_tensors],
    ids=lambda spoil: spoil.__name__,
)
def test_a_torn_checkpoint_is_refused_and_nothing_changes(
    spoil: Callable[[Path], None], checkpoint: Path
) -> None:
    spoil(checkpoint)
    run = training([DIGITS, LETTERS], MASKED)
    before = state(run)
    with pytest.raises(CheckpointUnreadable):
        restore_checkpoint(run, checkpoint)
    assert state(run) == before
    assert run.step == 0


@pytest.mark.parametrize(
    "other",
    [
        training([LETTERS, DIGITS], MASKED),
        training([DIGITS], MASKED),
        training([DIGITS, LETTERS], replace(MASKED, lr=2e-3)),
        training([DIGITS, data(tiny.meta("letters", (6, 11), 4))], MASKED),
        training([DIGITS, data(tiny.meta("letters", (7, 12), 3))], MASKED),
    ],
    ids=["in another order", "of one task", "of another recipe", "of another rank", "of other rows"],
)
def test_a_checkpoint_of_another_training_is_refused_and_nothing_changes(
    other: CoTraining, checkpoint: Path
) -> None:
    before = state(other)
    with pytest.raises(CheckpointUnreadable, match="belongs to another training"):
        restore_checkpoint(other, checkpoint)
    assert state(other) == before


def test_a_checkpoint_of_another_backbone_is_refused_and_nothing_changes(checkpoint: Path) -> None:
    wider = tiny.backbone(config={"width": 32, "depth": 2, "heads": 2, "patch": 4})
    run = CoTraining(ComposedModel(wider, tiny.FINGERPRINT), [DIGITS, LETTERS], MASKED)
    before = state(run)
    with pytest.raises(CheckpointUnreadable, match="is missing or has another shape"):
        restore_checkpoint(run, checkpoint)
    assert state(run) == before


def test_checkpoints_are_found_the_furthest_first_and_unreadable_ones_left_out(tmp_path: Path) -> None:
    run = training([DIGITS], MASKED)
    for step in (1, 2, 3):
        run.train_step()
        save_checkpoint(run, tmp_path / f"{9 - step}")
    for name, text in {"torn": '{"step": 9', "list": "[]", "null": '{"step": null}', "text": '"x"'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(text)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["6", "7", "8"]
    assert list(checkpoints_in(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_training_and_names_the_task(value: float) -> None:
    run = training([DIGITS, LETTERS], MASKED)
    run.train_step()
    with torch.no_grad():
        run.model.task("letters").rows.fill_(value)
    before = run.step
    with pytest.raises(TrainingDiverged, match="The loss of 'letters' is no number after step 1") as raised:
        run.train_step()
    assert raised.value.args == ("letters", before)
    assert raised.value.lasting


def test_an_adapter_with_values_that_are_no_numbers_is_not_handed_out() -> None:
    run = training([DIGITS, LETTERS], MASKED)
    run.run()
    run.learner("letters").averages["class_rows"][0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="letters"):
        run.finish()


def test_a_learning_rate_far_too_high_diverges_or_ends_finite() -> None:
    try:
        [adapter] = trained(
            [DIGITS], replace(UNMASKED, steps=40, lr=1e5, class_lr=1e5, warmup=0, clip_norm=1e5)
        )
    except TrainingDiverged:
        return
    assert all(bool(tensor.isfinite().all()) for tensor in adapter.tensors.values())


def test_a_model_that_holds_tasks_already_is_not_trained_on() -> None:
    """Weight decay would reach the older task's tensors, which lie in the same stacks."""
    model = tiny.composed(tiny.two_tasks()[1])
    before = tiny.digests(model)
    with pytest.raises(ConfigInvalid, match="holds tasks already"):
        CoTraining(model, [DIGITS], MASKED)
    assert tiny.digests(model) == before


def test_no_tasks_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="there is none to train"):
        training([], MASKED)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0] * 14, "class 'digits 1' of task 'digits' has no image"),
        ([0, 1] * 6 + [2, 2], "its labels are not those"),
        ([0, 1] * 6 + [-1, 0], "its labels are not those"),
        ([0, 1] * 6, "its labels are not those"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(labels: list[int], says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says):
        training([replace(DIGITS, labels=torch.tensor(labels))], MASKED)


def stream(recipe: Recipe, task: TaskData = LETTERS) -> TaskStream:
    return TaskStream(task, recipe, tiny.NULL, tokens=16, steps=1000)


def test_a_batch_holds_the_tasks_own_rows_and_the_null_row_for_the_share_dropped() -> None:
    batch = stream(replace(MASKED, batch=4000, label_dropout=0.1)).next(masked=False)
    assert set(batch.rows.tolist()) == {3, 6, 7, 8, 9, 10}
    assert float((batch.rows == 3).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert 3 not in stream(replace(MASKED, batch=4000, label_dropout=0.0)).next(masked=False).rows
    assert batch.keep is None
    assert float(batch.x0.min()) >= -1
    assert float(batch.x0.max()) <= 1


def test_classes_are_drawn_evenly_however_many_images_each_has() -> None:
    images = torch.zeros(101, 1, 8, 8, dtype=torch.uint8)
    images[100] = 255
    uneven = TaskData(tiny.meta("digits", (4, 6)), images, torch.tensor([0] * 100 + [1]))
    batch = stream(replace(MASKED, batch=4000, label_dropout=0.0), uneven).next(masked=False)
    white = batch.x0.flatten(1).mean(dim=1) > 0
    assert torch.equal(white, batch.rows == 5)
    assert float(white.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_every_image_belongs_to_the_class_that_its_row_says() -> None:
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(1))
    labels[:5] = torch.arange(5)
    images = (labels * 50).byte()[:, None, None, None].expand(-1, 1, 8, 8)
    task = TaskData(LETTERS.meta, images, labels)
    batch = stream(replace(MASKED, batch=500, label_dropout=0.0), task).next(masked=False)
    found = ((batch.x0[:, 0, 0, 0] + 1) * 127.5 / 50).round().long() + 6
    assert torch.equal(found, batch.rows)


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 8), (0.9, 2), (0.999, 1), (0.01, 16)])
def test_a_mask_keeps_its_share_of_the_tokens_each_once_and_in_order(ratio: float, kept: int) -> None:
    batch = stream(replace(MASKED, mask_ratio=ratio, batch=50)).next(masked=True)
    assert batch.keep is not None
    assert batch.keep.shape == (50, kept)
    assert bool((batch.keep.diff(dim=1) > 0).all())
    assert 0 <= int(batch.keep.min()) <= int(batch.keep.max()) < 16


def test_the_last_share_of_the_steps_is_unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training([DIGITS], replace(MASKED, steps=10, unmasked_share=0.3))
    seen: list[bool] = []
    denoise = run.model.denoise

    def noted(x: Tensor, t: Tensor, rows: Tensor, plan: Plan, keep: Tensor | None, *told: object) -> Tensor:
        seen.append(keep is not None)
        return denoise(x, t, rows, plan, keep)

    monkeypatch.setattr(run.model, "denoise", noted)
    run.run()
    assert seen == [True] * 7 + [False] * 3


def told(meta: AdapterMeta, spec: BackboneSpec, texts: int = 0) -> TaskData:
    """Random images of a backbone, with random conditions where the task is told one, and captions."""
    channels, size, _ = spec.latent_shape()
    plain = data(meta, 9)
    generator = torch.Generator().manual_seed(len(meta.task))
    shape = (len(plain.labels), channels, size, size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    conditions = captions = None
    if meta.condition is not None:
        shape = (len(images), meta.condition["channels"], spec.image_size, spec.image_size)
        conditions = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if texts and spec.text is not None:
        embedded = torch.randn(texts, spec.text.length, spec.text.width, generator=generator)
        embedded[0] = tiny_unets.built(spec).encode_text([""])[0]
        captions = Captions(embedded, torch.randint(0, texts, (len(images),), generator=generator))
    if spec.latent is not None:
        return replace(plain, images=torch.randn(*images.shape, generator=generator), conditions=conditions)
    return replace(plain, images=images, captions=captions, conditions=conditions)


CANNY, MAP = {"name": "canny", "channels": 1}, {"name": "segmentation", "channels": 3}
U_NETS = {"pixels": tiny_unets.unet_spec, "captions": tiny_unets.text_spec, "latents": tiny_unets.latent_spec}


def on(spec: BackboneSpec, tasks: Sequence[TaskData], recipe: Recipe = UNMASKED) -> CoTraining:
    return CoTraining(ComposedModel(tiny_unets.built(spec), tiny.FINGERPRINT), tasks, recipe)


def learnt(spec: BackboneSpec, tasks: Sequence[TaskData], recipe: Recipe = UNMASKED) -> list[Adapter]:
    run = on(spec, tasks, recipe)
    run.run()
    return run.finish()


@pytest.fixture(params=["float32", "float64"])
def rounding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """Computes in a number type. → how far its rounding may carry, in networks of convolutions"""
    if request.param == "float32":
        yield 1e-4
        return
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield 1e-10
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", U_NETS)
def test_condition_caption_and_class_tasks_train_together_as_alone(name: str, rounding: float) -> None:
    spec = U_NETS[name]()
    tasks = [
        told(tiny.meta("edges", (4, 5), condition=CANNY), spec, texts=3),
        told(tiny.meta("digits", (5, 7), 3), spec),
        told(tiny.meta("maps", (7, 9), condition=MAP), spec),
    ]
    for task, adapter in zip(tasks, learnt(spec, tasks), strict=True):
        [alone] = learnt(spec, [task])
        assert furthest(alone, adapter) <= rounding
        assert ("stem.gate" in adapter.tensors) == (task.conditions is not None)


def test_clipping_reaches_the_stem_and_no_other_task() -> None:
    """With tight clipping, a task's step is that of its training alone, its stem's too."""
    tight = replace(UNMASKED, clip_norm=1e-3)
    edges = told(tiny.meta("edges", (4, 5), condition=CANNY), tiny.spec())
    bright = replace(DIGITS, meta=tiny.meta("digits", (5, 7)), images=torch.full_like(DIGITS.images, 255))
    beside, _ = trained([edges, bright], tight)
    [alone] = trained([edges], tight)
    assert furthest(alone, beside) <= 1e-5


def test_a_transformer_is_told_conditions_under_masks_too() -> None:
    edges = told(tiny.meta("edges", (4, 5), condition=CANNY), tiny.spec())
    tasks = [edges, data(tiny.meta("digits", (5, 7), 2))]
    for task, adapter in zip(tasks, trained(tasks, MASKED), strict=True):
        [alone] = trained([task], MASKED)
        assert furthest(alone, adapter) <= 1e-5


def test_every_part_of_a_stem_moves_and_the_gate_opens() -> None:
    spec = tiny_unets.unet_spec()
    run = on(spec, [told(tiny.meta("edges", (4, 5), condition=CANNY), spec)])
    start = run.model.adapter("edges").tensors
    assert start["stem.gate"] == 0
    run.run()
    [end] = run.finish()
    stem = [name for name in start if name.startswith("stem.")]
    assert all(not torch.equal(end.tensors[name], start[name]) for name in stem)


def test_a_broken_training_of_conditions_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    spec = tiny_unets.text_spec()
    tasks = [told(tiny.meta("edges", (4, 5), condition=CANNY), spec, texts=3)]
    [whole] = learnt(spec, tasks)
    run = on(spec, tasks)
    for _ in range(3):
        run.train_step()
    save_checkpoint(run, tmp_path)
    again = on(spec, tasks)
    restore_checkpoint(again, tmp_path)
    again.run()
    assert adapter_bytes(again.finish()[0]) == adapter_bytes(whole)


def test_a_sample_without_its_class_has_the_empty_caption_too() -> None:
    spec = tiny_unets.text_spec()
    task = told(tiny.meta("digits", (4, 6)), spec, texts=3)
    assert task.captions is not None
    stream = on(spec, [task], replace(UNMASKED, label_dropout=0.5, batch=64)).streams[0]
    batch = stream.next(masked=False)
    dropped = batch.rows == tiny.NULL
    assert 0 < int(dropped.sum()) < 64
    assert batch.text is not None
    assert torch.equal(batch.text[dropped], task.captions.embedded[:1].expand(int(dropped.sum()), -1, -1))
    assert not torch.equal(batch.text[~dropped], task.captions.embedded[:1].expand_as(batch.text[~dropped]))


def test_a_mask_without_tokens_and_sizes_that_differ_are_refused() -> None:
    spec = tiny_unets.unet_spec()
    with pytest.raises(ConfigInvalid, match="no tokens to mask"):
        on(spec, [told(tiny.meta("digits", (4, 6)), spec)], MASKED)
    with pytest.raises(ConfigInvalid, match="images of 8 and 16 pixels"):
        training([DIGITS, data(tiny.meta("large", (6, 8), image_size=16))], UNMASKED)


def test_conditions_without_a_stem_and_a_stem_without_conditions_are_refused() -> None:
    spec = tiny_unets.unet_spec()
    task = told(tiny.meta("edges", (4, 5), condition=CANNY), spec)
    for wrong in (replace(task, conditions=None), replace(task, meta=tiny.meta("edges", (4, 5)))):
        with pytest.raises(ConfigInvalid, match="the conditions of task 'edges'"):
            on(spec, [wrong])


@both
def test_a_backbone_with_a_learned_variance_trains_on_what_it_predicts_of_the_noise(recipe: Recipe) -> None:
    config = {"width": 16, "depth": 2, "heads": 2, "patch": 4, "learn_sigma": True}
    run = CoTraining(ComposedModel(tiny.backbone(config=config), tiny.FINGERPRINT), [DIGITS], recipe)
    run.run()
    assert all(bool(tensor.isfinite().all()) for tensor in run.finish()[0].tensors.values())


@both
def test_a_task_of_twice_the_size_trains_with_four_times_the_tokens(recipe: Recipe) -> None:
    task = data(tiny.meta("large", (4, 6), image_size=16))
    task = replace(task, images=task.images.repeat(1, 1, 2, 2))
    run = training([task], recipe)
    assert run.streams[0].tokens == 16
    run.run()
    assert run.finish()[0].meta.image_size == 16

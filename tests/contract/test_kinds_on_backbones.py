"""What every adapter kind keeps to on every backbone: all that discovery finds of both."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from affinery.adapters import kind, kinds
from affinery.adapters.files import Adapter, AdapterMeta, adapter_bytes, read_adapter
from affinery.backbones import architectures
from affinery.backbones.contract import Backbone
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid, UnknownName
from tests import tiny_models as tiny
from tests.contract.test_backbones import EXAMPLES, batch, built


@cache
def backbone(arch: str) -> Backbone:
    """One for all tests that only look at it."""
    return built(arch)


def fits(name: str, arch: str) -> bool:
    try:
        return bool(kind(name).choose(backbone(arch).sites(), kind(name).config({})))
    except ConfigInvalid:
        return False


NOT_THERE = {(name, arch) for name in kinds() for arch in architectures() if not fits(name, arch)}
CASES = [
    pytest.param(name, arch, id=f"{name} on {arch}")
    for name in kinds()
    for arch in architectures()
    if (name, arch) not in NOT_THERE
]
everywhere = pytest.mark.parametrize(("name", "arch"), CASES)


def record(name: str, arch: str, task: str = "one", at: int = 0, rows: int = 2) -> AdapterMeta:
    null = EXAMPLES[arch].null_index
    config = kind(name).config({}).to_dict() | (
        {"rank": 4} if "rank" in kind(name).config({}).to_dict() else {}
    )
    return tiny.meta(task, (null + 1 + at, null + 1 + at + rows), kind=name, config=config, null_index=null)


def model_of(arch: str) -> ComposedModel:
    return ComposedModel(built(arch), tiny.FINGERPRINT)


@cache
def trained(name: str, arch: str, task: str = "one", at: int = 0, seed: int = 1) -> Adapter:
    """An adapter as training leaves it: no tensor as it was at the start."""
    model = model_of(arch)
    model.start(record(name, arch, task, at), torch.Generator().manual_seed(seed))
    started = model.adapter(task)
    generator = torch.Generator().manual_seed(seed)
    changed = {
        key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in started.tensors.items()
    }
    return Adapter(started.meta, changed)


class Inputs:
    """A batch for an architecture, with the text it may want."""

    def __init__(self, arch: str, count: int = 4) -> None:
        self.spec = EXAMPLES[arch]
        self.x, self.t = batch(self.spec, count)
        text = self.spec.text
        generator = torch.Generator().manual_seed(5)
        self.text = None if text is None else torch.randn(count, text.length, text.width, generator=generator)
        self.first = self.spec.null_index + 1

    def through(self, model: ComposedModel, rows: list[int], tasks: list[str | None]) -> Tensor:
        return model.denoise(self.x, self.t, torch.tensor(rows), model.plan(tasks), text=self.text)

    def row(self, i: int, model: ComposedModel, rows: list[int], tasks: list[str | None]) -> Tensor:
        text = None if self.text is None else self.text[i : i + 1]
        return model.denoise(
            self.x[i : i + 1],
            self.t[i : i + 1],
            torch.tensor(rows[i : i + 1]),
            model.plan(tasks[i : i + 1]),
            text=text,
        )

    def plain(self, arch: str, rows: list[int]) -> Tensor:
        plain = backbone(arch)
        return plain.denoise(self.x, self.t, plain.class_table[torch.tensor(rows)], text=self.text)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    scale = max(1.0, float(other.abs().max()))
    return float((one - other).abs().max()) <= tolerance * scale


@everywhere
def test_a_new_task_is_the_backbone_to_the_bit(name: str, arch: str) -> None:
    model, inputs = model_of(arch), Inputs(arch)
    model.start(record(name, arch), torch.Generator().manual_seed(0))
    null = model.null_row
    started = inputs.through(model, [inputs.first, inputs.first + 1, null, null], ["one"] * 4)
    assert torch.equal(started, inputs.plain(arch, [null] * 4))


@everywhere
def test_training_changes_the_task_and_not_a_bit_of_the_backbone(name: str, arch: str) -> None:
    model, inputs = model_of(arch), Inputs(arch)
    before = {key: tensor.clone() for key, tensor in model.frozen_state().items()}
    task = model.start(record(name, arch), torch.Generator().manual_seed(0))
    banks = model.banks(model.groups[task.group])
    stacks = [bank.stack(part) for bank in banks.values() for part in bank.shapes]
    own = [*stacks, task.rows]
    for tensor in own:
        tensor.requires_grad_(True)
    optimizer = torch.optim.SGD(own, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        inputs.through(model, [inputs.first] * 4, ["one"] * 4).square().mean().backward()
        assert all(p.grad is None for p in model.parameters() if not any(p is q for q in own))
        optimizer.step()
    assert all(bool(stack[0].isfinite().all()) for stack in stacks)
    after = model.frozen_state()
    assert after.keys() == before.keys() == backbone(arch).state_dict().keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    moved = inputs.through(model, [inputs.first] * 4, ["one"] * 4)
    assert not torch.equal(moved, inputs.plain(arch, [model.null_row] * 4))
    with model.disable():
        off = inputs.through(model, [model.null_row] * 4, ["one"] * 4)
    assert torch.equal(off, inputs.plain(arch, [model.null_row] * 4))


@everywhere
def test_every_module_that_a_kind_chooses_is_asked_in_a_pass(name: str, arch: str) -> None:
    """An adapter on a module that the forward pass goes round would train on nothing."""
    model, inputs = model_of(arch), Inputs(arch)
    task = model.start(record(name, arch), torch.Generator().manual_seed(0))
    asked: list[str] = []
    for path in model.groups[task.group].sites:
        model.adapted[path].register_forward_hook(lambda *_, path=path: asked.append(path))
    inputs.through(model, [inputs.first] * 4, ["one"] * 4)
    assert set(asked) == set(model.groups[task.group].sites)


@everywhere
def test_saved_and_loaded_a_task_is_the_same_to_the_bit(name: str, arch: str, tmp_path: Path) -> None:
    adapter = trained(name, arch)
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(adapter_bytes(adapter))
    model = model_of(arch)
    model.load(read_adapter(path))
    assert adapter_bytes(model.adapter("one")) == path.read_bytes()


@everywhere
def test_a_task_is_bit_equal_alone_and_beside_others_that_come_and_go(name: str, arch: str) -> None:
    model, inputs = model_of(arch), Inputs(arch)
    model.load(trained(name, arch))
    rows: list[int] = [inputs.first, inputs.first + 1, model.null_row, inputs.first]
    before = inputs.through(model, rows, ["one"] * 4)
    for i in range(3):  # past the room that the stacks had
        model.load(trained(name, arch, f"other {i}", 2 + 2 * i, seed=2 + i))
    assert torch.equal(inputs.through(model, rows, ["one"] * 4), before)
    model.unload("other 0")
    model.unload("other 2")
    assert torch.equal(inputs.through(model, rows, ["one"] * 4), before)
    model.load(trained(name, arch, "again", 20, seed=9))
    assert torch.equal(inputs.through(model, rows, ["one"] * 4), before)
    with pytest.raises(UnknownName):
        model.unload("other 0")
    with pytest.raises(UnknownName):
        inputs.through(model, rows, ["other 0"] * 4)


@everywhere
def test_a_task_twice_is_refused_and_loading_another_leaves_what_trains_as_it_is(
    name: str, arch: str
) -> None:
    model = model_of(arch)
    task = model.load(trained(name, arch))
    bank = next(iter(model.banks(model.groups[task.group]).values()))
    for part in bank.shapes:
        bank.stack(part).requires_grad_(True)
    with pytest.raises(ConfigInvalid, match="in this model already"):
        model.load(trained(name, arch, at=2))
    assert list(model.slots) == ["one"]
    for i, other in enumerate(("affiner", name)):
        model.load(trained(other, arch, f"other {i}", 2 + 2 * i))
    assert all(bank.stack(part).requires_grad for part in bank.shapes)


@pytest.mark.parametrize("arch", architectures())
def test_tasks_of_all_kinds_mix_in_a_batch_under_guidance_too(arch: str) -> None:
    there = [name for name in kinds() if (name, arch) not in NOT_THERE]
    model = model_of(arch)
    for i, name in enumerate(there):
        model.load(trained(name, arch, name, 2 * i))
    tasks: list[str | None] = []
    rows: list[int] = []
    inputs = Inputs(arch, 2 * len(there) + 1)
    for i, name in enumerate(there):  # each beside its unconditional twin
        tasks += [name, name]
        rows += [inputs.first + 2 * i, model.null_row]
    tasks.append(None)
    rows.append(model.null_row)
    mixed = inputs.through(model, rows, tasks)
    for i in range(len(tasks)):
        assert close(mixed[i : i + 1], inputs.row(i, model, rows, tasks), 1e-4), tasks[i]


@everywhere
@pytest.mark.parametrize("level", ["cheap", "block"])
def test_computing_results_again_gives_the_same_gradients(name: str, arch: str, level: str) -> None:
    """The plan that a block is computed again with is that of its pass, whatever ran in between."""
    gradients = []
    for again in ("none", level):
        model, inputs = model_of(arch), Inputs(arch)
        task = model.load(trained(name, arch))
        model.recompute(again)
        stacks = [
            bank.stack(part)
            for bank in model.banks(model.groups[task.group]).values()
            for part in bank.shapes
        ]
        for stack in stacks:
            stack.requires_grad_(True)
        loss = inputs.through(model, [inputs.first] * 4, ["one", None, "one", "one"]).square().mean()
        with torch.no_grad():
            inputs.through(model, [model.null_row] * 4, [None] * 4)
        loss.backward()
        gradients.append([stack.grad for stack in stacks])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert close(recomputed, plain)


@everywhere
def test_half_precision_passes_train_full_precision_tensors(name: str, arch: str) -> None:
    model, inputs = model_of(arch), Inputs(arch)
    task = model.load(trained(name, arch))
    stacks = [
        bank.stack(part) for bank in model.banks(model.groups[task.group]).values() for part in bank.shapes
    ]
    for stack in stacks:
        stack.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        inputs.through(model, [inputs.first] * 4, ["one"] * 4).float().square().mean().backward()
    assert all(stack.grad is not None and stack.grad.dtype == torch.float32 for stack in stacks)


@everywhere
def test_folded_a_task_draws_the_same_and_unfolding_is_exact_to_the_bit(name: str, arch: str) -> None:
    model, inputs = model_of(arch), Inputs(arch)
    own = adapter_bytes(trained(name, arch))
    model.load(trained(name, arch))
    model.load(trained("lora", arch, "other", 2))
    rows: list[int] = [inputs.first] * 4
    before = inputs.through(model, rows, ["one"] * 4)
    frozen = {key: tensor.clone() for key, tensor in model.frozen_state().items()}
    left = model.fold("one")
    assert left.task == "one"
    assert close(inputs.through(model, rows, ["one"] * 4), before, 1e-4)
    for task in ("other", None):
        with pytest.raises(ConfigInvalid, match="folded into it"):
            inputs.through(model, rows, [task] * 4)
    with pytest.raises(ConfigInvalid, match="unfold it first"):
        model.load(trained("lora", arch, "third", 4))
    model.unfold()
    after = model.frozen_state()
    assert after.keys() == frozen.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in frozen.items())
    assert torch.equal(inputs.through(model, rows, ["one"] * 4), before)
    assert adapter_bytes(model.adapter("one")) == own


@pytest.mark.parametrize("arch", architectures())
@pytest.mark.slow
def test_one_compiled_graph_serves_every_mix_of_tasks(arch: str) -> None:
    """No graph break, and no compilation after the first, whatever tasks a batch names."""
    torch._dynamo.reset()
    compiled, plain, inputs = model_of(arch), model_of(arch), Inputs(arch)
    names = ["affiner", "lora", "full", "vpt-deep"] if arch.startswith("dit") else ["affiner", "full"]
    for model in (compiled, plain):
        for i, name in enumerate(names):
            model.load(trained(name, arch, name, 2 * i))
    compiled.compiled(backend="eager")
    mixes: list[list[str | None]] = [
        [names[0]] * 4,
        [*names[:2], None, None],
        [None] * 4,
        [names[-1], names[-1], *names[:2]],
    ]
    with torch.no_grad():
        for i, mix in enumerate(mixes):
            rows = [model.null_row] * 4
            with torch._dynamo.config.patch(error_on_recompile=i > 0):
                out = inputs.through(compiled, rows, mix)
            assert close(out, inputs.through(plain, rows, mix), 1e-4)
    torch._dynamo.reset()


def test_only_what_needs_tokens_or_feed_forward_branches_finds_nothing_in_a_cnn() -> None:
    needy = {"adaptformer-parallel", "adaptformer-sequential", "vpt-deep"}
    assert {(name, arch) for name, arch in NOT_THERE if name in needy} == {(name, "unet") for name in needy}
    assert all(arch == "unet" for _, arch in NOT_THERE)


@pytest.mark.parametrize(("name", "arch"), sorted(NOT_THERE))
def test_a_kind_without_anything_to_adapt_is_refused(name: str, arch: str) -> None:
    model = model_of(arch)
    before = dict(model.named_modules()).keys()
    with pytest.raises(ConfigInvalid, match=name):
        model.start(record(name, arch), torch.Generator())
    assert dict(model.named_modules()).keys() == before
    assert not model.groups


@pytest.mark.parametrize("arch", architectures())
def test_targets_are_roles_or_patterns_and_each_must_mean_something(arch: str) -> None:
    model = model_of(arch)
    sites: dict[str, str] = {path: site.role for path, site in model.sites.items()}
    role = next(r for r in ("qkv", "query") if r in sites.values())
    path = next(path for path, r in sites.items() if r == role)
    for targets in ([role], [path.split(".")[0] + ".*"]):
        chosen = kind("lora").choose(model.sites, kind("lora").config({"targets": targets}))
        assert path in chosen
    for wrong in (["no.such.layer"], [role, "blocks.99.*"], ["mlp"]):
        with pytest.raises(ConfigInvalid, match=r"nothing to adapt|no layer that lora takes"):
            kind("lora").choose(model.sites, kind("lora").config({"targets": wrong}))

"""What a training step costs, against full fine-tuning, PEFT, a loop over adapters and no cache.

    python -m benchmarks.training [--quick] [--device cuda] [--json FILE]

A step is a whole one: data, forward and backward pass, clipping, AdamW, running means. Ways are timed in
turns (see `timing`) and given as ratios within a round. Before each ratio both sides' outputs are compared.
On a CPU the backbone has the width of DiT-XL/2 and two of its 28 blocks: blocks are alike, so a ratio of a
block is one of the whole. Weights are random, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affinery.adapters.affiner import Affiner
from affinery.adapters.contract import Kind
from affinery.adapters.files import Adapter, AdapterMeta
from affinery.adapters.routing import Blocks, Choice
from affinery.adapters.sites import Bank
from affinery.backbones.contract import Backbone, BackboneSpec, Latent, Site
from affinery.backbones.dit import DiT
from affinery.composed import ComposedModel
from affinery.diffusion.objective import l_simple
from affinery.diffusion.schedule import NoiseSchedule
from affinery.estimate import Estimator, Setup
from affinery.meta_device import LiveMemory
from benchmarks.timing import CLOCKS, Figure, Spread, Stopwatch, show, write
from orchestration.ray_processes import ALLOCATOR
from trainers.loop import CoTraining, halved
from trainers.recipe import Recipe
from trainers.streams import TaskData

FINGERPRINT = "b" * 64
CLASSES, TASK_CLASSES, IMAGES, TASKS = 10, 4, 64, 8
ROLES = ["qkv", "proj", "fc1", "fc2", "modulation"]
TARGETS = r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|adaLN_modulation\.1)"  # the same, to PEFT
MASKED, UNMASKED = 0.5, 0.0
ENDLESS = 100_000_000
# A quarter of the width of Stable Diffusion's VAE: a 16th of its cost, as two blocks are a 14th of DiT-XL's.
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
}


@dataclass(frozen=True)
class Size:
    """The backbone and how often each way is timed. side: of an image, in patches; batches: all are printed.

    together: (side, batch a task) of co-training, with its target.
    """

    width: int
    depth: int
    heads: int
    side: int
    rank: int
    batches: tuple[int, ...]
    together: tuple[tuple[int, int, float | None], ...]
    vae_width: int
    rounds: int

    @property
    def label(self) -> str:
        return f"DiT of width {self.width}, depth {self.depth}; Affiner and LoRA of rank {self.rank}"


FULL = Size(1152, 2, 16, 16, 64, (1, 4, 16), ((4, 1, 2.0), (8, 4, 1.15), (8, 16, 1.0)), 32, 5)
QUICK = Size(256, 2, 4, 8, 16, (1, 4), ((4, 1, None), (8, 4, None)), 8, 5)
TINY = Size(32, 1, 2, 4, 2, (2,), ((4, 1, None),), 4, 1)
H200 = Size(1152, 28, 16, 16, 64, (4, 16, 64), ((16, 1, 3.0), (16, 4, 3.0), (16, 16, 1.6)), 128, 7)
STEP_TARGETS = {"cpu": (0.70, 0.38, 0.55), "cuda": (0.65, 0.40, 0.56)}


def backbone_of(size: Size, side: int, vae: bool = False) -> Backbone:
    """A frozen DiT on latents, no weight of which is zero."""
    channels = [size.vae_width * by for by in (1, 2, 4, 4)]
    own = VAE | {"block_out_channels": channels, "norm_num_groups": min(32, size.vae_width)}
    spec = BackboneSpec(
        arch="dit",
        config={"width": size.width, "depth": size.depth, "heads": size.heads, "patch": 2},
        class_names=tuple(f"class {i}" for i in range(CLASSES)),
        image_size=16 * side,
        channels=3,
        latent=Latent(4, 8, 0.18, 0.0, own if vae else None),
    )
    model = DiT.build(spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed" and not name.startswith("vae."):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.freeze()


def task(size: Size, number: int, side: int, kind: str = "affiner") -> TaskData:
    """A task on random latents."""
    first = CLASSES + 1 + TASK_CLASSES * number
    names = tuple(f"class {i}" for i in range(TASK_CLASSES))
    config = {"rank": size.rank, "targets": ROLES}
    meta = AdapterMeta(
        f"task {number}", kind, config, FINGERPRINT, CLASSES, (first, first + TASK_CLASSES), names
    )
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(IMAGES, 4, 2 * side, 2 * side, generator=generator)
    return TaskData(meta, images, torch.arange(IMAGES) % TASK_CLASSES)


class Bench:
    """What every figure needs."""

    def __init__(self, size: Size, watch: Stopwatch, device: torch.device) -> None:
        self.size, self.watch, self.device = size, watch, device
        self.backbones: dict[int, Backbone] = {}

    def backbone(self, side: int) -> Backbone:
        """A copy of one and the same."""
        if side not in self.backbones:
            self.backbones[side] = backbone_of(self.size, side)
        return copy.deepcopy(self.backbones[side]).to(self.device)

    def training(
        self, side: int, numbers: Sequence[int], batch: int, kind: str = "affiner", **settings: Any
    ) -> CoTraining:
        recipe = Recipe(steps=ENDLESS, batch=batch, **{"mask_ratio": UNMASKED, **settings})
        model = ComposedModel(self.backbone(side), FINGERPRINT)
        return CoTraining(model, [task(self.size, n, side, kind) for n in numbers], recipe)

    def timed(self, ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        return self.watch.in_turns({name: self.waited(do) for name, do in ways.items()}, self.size.rounds)

    def waited(self, do: Callable[[], object]) -> Callable[[], object]:
        """On a GPU a step is over when the device is."""
        if self.device.type != "cuda":
            return do

        def done() -> None:
            do()
            torch.cuda.synchronize()

        return done

    def peak(self, do: Callable[[], object]) -> float:
        """GiB of the GPU's memory at most, while a step is done. What was there before counts."""
        do()
        torch.cuda.reset_peak_memory_stats()
        do()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**30


def ratio(one: list[float], other: list[float], times: float = 1.0) -> Spread:
    return Spread.of([times * a / b for a, b in zip(one, other, strict=True)])


class Tuned:
    """Full fine-tuning, or PEFT's LoRA: the same step in plain PyTorch. model: its trained parameters require
    gradients."""

    def __init__(self, bench: Bench, model: nn.Module, data: TaskData, batch: int) -> None:
        self.model, self.data, self.batch = model, data, batch
        self.half = halved("auto", bench.device)
        self.device = bench.device
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average = [parameter.detach().clone() for parameter in self.trained]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def predict(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            out: Tensor = self.model(x, t, rows)
        return out.float()

    def step(self) -> None:
        chosen = torch.randint(IMAGES, (self.batch,), generator=self.generator)
        x0 = self.data.images[chosen].to(self.device)
        noise = torch.randn(x0.shape, generator=self.generator).to(self.device)
        t = torch.randint(1000, (self.batch,), generator=self.generator).to(self.device)
        rows = self.data.labels[chosen].to(self.device)
        loss = l_simple(self.predict(self.schedule().diffuse(x0, t, noise), t, rows), noise).mean()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.trained], 0.01)
        loss.item()

    def schedule(self) -> NoiseSchedule:
        if not hasattr(self, "_schedule"):
            spec = BackboneSpec("dit", {}, (), 8, 1)
            self._schedule = NoiseSchedule(spec)
        return self._schedule


def tuned(bench: Bench, side: int, batch: int) -> Tuned:
    backbone = bench.backbone(side)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name != "pos_embed")
    return Tuned(bench, backbone, task(bench.size, 0, side), batch)


def same(what: str, one: Tensor, other: Tensor, limit: float = 1e-5) -> None:
    """Ends the run where two ways do not give the same: ‖difference‖ ÷ ‖it‖; the largest is told too.

    Adam divides a gradient by its size, so the entries whose gradients are next to rounding, one in some
    thousands, may go the other way and differ by two steps of its size.
    """
    difference = (one - other).float()
    apart = float(difference.norm() / other.float().norm())
    largest = float(difference.abs().max() / other.abs().max())
    if not apart <= limit or not largest <= 100 * limit:
        raise SystemExit(
            f"{what}: they differ by {apart:.1e}, at most {largest:.1e}; the limit is {limit:.0e}."
        )
    print(f"{what}: equal to {apart:.1e}, at most {largest:.1e}", flush=True)


def inputs(bench: Bench, side: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, 4, 2 * side, 2 * side, generator=generator)
    return tuple(one.to(bench.device) for one in (x, torch.arange(batch) * 7, torch.arange(batch) % CLASSES))  # type: ignore[return-value]


def steps(bench: Bench) -> Iterator[Figure]:
    """The Affiner's step over full fine-tuning's, masked and not, at every batch size."""
    size, side = bench.size, bench.size.side
    whole, half, less = STEP_TARGETS[bench.device.type]
    for batch in size.batches:
        full, plain = tuned(bench, side, batch), bench.training(side, [0], batch)
        masked = bench.training(side, [0], batch, mask_ratio=MASKED)
        x, t, rows = inputs(bench, side, 2)
        with torch.no_grad():
            names = ["task 0"] * 2
            same(
                f"batch {batch}: Affiner at its start and the backbone",
                plain.model(x, t, rows, names),
                full.model(x, t, rows),
            )
        cheap = bench.training(side, [0], batch, recompute="cheap")
        times = bench.timed(
            {
                "full": full.step,
                "plain": plain.train_step,
                "masked": masked.train_step,
                "cheap": cheap.train_step,
            }
        )
        where = f"{side**2} tokens, batch {batch}"
        best = max(size.batches) == batch
        goal = 0.78 if bench.device.type == "cuda" and batch >= 64 else whole
        at_goal = best or bench.device.type == "cuda"
        yield Figure(
            f"{where}: Affiner step ÷ full fine-tuning step",
            "×",
            ratio(times["plain"], times["full"]),
            None,
            goal if at_goal else None,
        )
        yield Figure(
            f"{where}: masked Affiner ÷ full fine-tuning",
            "×",
            ratio(times["masked"], times["full"]),
            None,
            half if best else None,
        )
        yield Figure(
            f"{where}: masked ÷ unmasked Affiner",
            "×",
            ratio(times["masked"], times["plain"]),
            None,
            less if best else None,
        )
        yield Figure(
            f"  {where}: Affiner, cheap results computed again ÷ kept",
            "×",
            ratio(times["cheap"], times["plain"]),
        )
        yield Figure(
            f"  {where}: full fine-tuning, a step", "ms", Spread.of([1000 * one for one in times["full"]])
        )
        yield Figure(f"  {where}: idle share of an Affiner step", "%", Spread.of([100 * plain.clock.idle]))
        del full, plain, masked, cheap
        gc.collect()


def flop_model(bench: Bench) -> Iterator[Figure]:
    """The multiplications that the ratios above would follow if nothing else took time."""
    spec = backbone_of(replace(TINY, depth=1), 2).spec
    size = bench.size
    config = {"width": size.width, "depth": size.depth, "heads": size.heads, "patch": 2}
    estimator = Estimator(
        replace(spec, config=config, image_size=16 * size.side), Setup(TASK_CLASSES, 4, MASKED)
    )
    full = estimator.cost("full", {})
    own = estimator.cost("affiner", {"rank": size.rank, "targets": ROLES})
    assert own.masked is not None
    yield Figure("counted: Affiner ÷ full fine-tuning", "×", Spread.of([own.step.macs / full.step.macs]))
    yield Figure(
        "counted: masked Affiner ÷ full fine-tuning", "×", Spread.of([own.masked.macs / full.step.macs])
    )
    yield Figure("counted: masked ÷ unmasked Affiner", "×", Spread.of([own.masked.macs / own.step.macs]))
    yield Figure("counted: full fine-tuning, a sample", "GMAC", Spread.of([full.step.macs / 1e9]))
    yield Figure(
        "counted: states of the Affiner ÷ full fine-tuning",
        "×",
        Spread.of([own.states_bytes / full.states_bytes]),
    )


def check_together(bench: Bench, side: int, batch: int, **settings: Any) -> None:
    """Co-trained and alone, adapters end as one another."""
    brief = {"lr": 1e-3, "class_lr": 1e-2, "precision": "fp32", **settings}
    ends: list[Adapter] = []
    for numbers in ([0, 1, 2], [1]):
        run = bench.training(side, numbers, batch, **brief)
        for _ in range(3):
            run.train_step()
        ends.append({one.meta.task: one for one in run.finish()}["task 1"])
    parts: dict[str, list[str]] = {}
    for name in ends[0].tensors:
        parts.setdefault(name.rpartition(".")[2], []).append(name)
    for part, names in parts.items():
        ours, alone = (torch.cat([end.tensors[name].flatten() for name in names]) for end in ends)
        same(f"{side**2} tokens, batch {batch}: {part}, co-trained and alone", ours, alone)


def together(bench: Bench) -> Iterator[Figure]:
    """Eight tasks in one pass over eight trainings after each other, and over a loop over adapters."""
    cuda = bench.device.type == "cuda"
    for side, batch, target in bench.size.together:
        mask = MASKED if cuda else UNMASKED
        check_together(bench, side, batch, mask_ratio=mask)
        one_pass = bench.training(side, range(TASKS), batch, mask_ratio=mask)
        apart = [bench.training(side, [n], batch, mask_ratio=mask) for n in range(TASKS)]
        loop = bench.training(side, range(TASKS), batch, mask_ratio=mask)
        for group in loop.model.groups.values():
            for bank in loop.model.banks(group).values():
                bank.kind = Looped()
        stacked, looped = (torch.tensor(list(run.train_step().values())) for run in (one_pass, loop))
        same("a loop over adapters and stacked ones, losses", looped, stacked)

        def one_by_one(apart: Sequence[CoTraining] = apart) -> None:
            for run in apart:
                run.train_step()

        ways: dict[str, Callable[[], object]] = {
            "apart": one_by_one,
            "loop": loop.train_step,
            "together": one_pass.train_step,
        }
        if cuda:
            graphed = bench.training(side, range(TASKS), batch, mask_ratio=mask, graphs="on")
            ways["graphed"] = graphed.train_step
            alone = bench.training(side, [0], batch, mask_ratio=mask, graphs="on")
            ways["graphed apart"] = repeated(alone.train_step)
        times = bench.timed(ways)
        where = f"{side**2} tokens, batch {batch} a task"
        name = f"{where}: {TASKS} tasks in one pass, samples/s ÷ {TASKS} runs after each other"
        yield Figure(name, "×", ratio(times["apart"], times["together"]), None, target, more_is_better=True)
        least = None if bench.size.width < 1000 else (2.0 if batch <= 4 else 1.2) if cuda else 1.4
        name = f"{where}: stacked ÷ a loop over adapters, samples/s"
        yield Figure(name, "×", ratio(times["loop"], times["together"]), None, least, more_is_better=True)
        if cuda:
            name = f"{where}: the same, both as CUDA graphs"
            goal = 1.05 if batch == 16 else None
            yield Figure(
                name, "×", ratio(times["graphed apart"], times["graphed"]), None, goal, more_is_better=True
            )
            yield from peaks(bench, where, one_pass, apart[0])
        del one_pass, apart, loop, ways
        gc.collect()


def repeated(do: Callable[[], object]) -> Callable[[], object]:
    def eight_times() -> None:
        for _ in range(TASKS):
            do()

    return eight_times


def peaks(bench: Bench, where: str, one_pass: CoTraining, alone: CoTraining) -> Iterator[Figure]:
    """Peak memory of eight tasks in one process over that of eight processes with one each."""
    held = torch.cuda.memory_allocated() / 2**30
    weights = sum(p.numel() * p.element_size() for p in one_pass.model.backbone.parameters()) / 2**30

    def own(run: CoTraining) -> float:
        states = sum(5 * tensor.numel() * 4 for tensor in run.trained().values()) / 2**30
        return weights + states + bench.peak(run.train_step) - held

    figure = Spread.of([own(one_pass) / (TASKS * own(alone))])
    yield Figure(
        f"{where}: peak memory of {TASKS} co-trained tasks ÷ {TASKS} processes", "×", figure, None, 0.35
    )


class Looped(Affiner):
    """The Affiner, one task after the other in every layer."""

    def learn(self, site: Site, config: Any, bank: Bank, choice: Choice, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(choice, Blocks)
        rows = zip(x.chunk(choice.count), y.chunk(choice.count), strict=True)
        each = [
            super(Looped, self).learn(site, config, bank, Blocks(choice.first + i, 1), *some)
            for i, some in enumerate(rows)
        ]
        return torch.cat(each)


class Plain(Affiner):
    """The Affiner as autograd differentiates it."""

    def learn(self, site: Site, config: Any, bank: Bank, choice: Choice, x: Tensor, y: Tensor) -> Tensor:
        return Kind.learn(self, site, config, bank, choice, x, y)


def saved(bench: Bench) -> Iterator[Figure]:
    """All memory that is held after a forward pass, its output apart: what it keeps for the backward pass."""
    side, batch = bench.size.side, 2
    found: dict[str, int] = {}
    for name, level in (("plain", "none"), ("custom", "none"), ("cheap", "cheap"), ("block", "block")):
        run = bench.training(side, [0], batch, recompute=level)
        if name == "plain":
            for group in run.model.groups.values():
                for bank in run.model.banks(group).values():
                    bank.kind = Plain()
        found[name] = held_after(
            run.model.denoise, *inputs(bench, side, batch), run.model.plan(["task 0"] * batch)
        )
        del run
    wide = bench.size.width >= 1000
    numbers = batch * side**2 * bench.size.depth * bench.size.width * 4
    yield Figure(
        "saved activations, custom ÷ plain",
        "×",
        Spread.of([found["custom"] / found["plain"]]),
        None,
        0.70 if wide else None,
    )
    yield Figure(
        "saved activations, custom with cheap results computed again ÷ plain",
        "×",
        Spread.of([found["cheap"] / found["plain"]]),
        None,
        0.50 if wide else None,
    )
    for name, total in found.items():
        yield Figure(f"  kept of a token and block, {name}", "D", Spread.of([total / numbers]))


def held_after(compute: Callable[..., Tensor], *given: Any) -> int:
    with LiveMemory() as memory:
        out = compute(*given)
        return int(memory.bytes(out))


def against_peft(bench: Bench) -> Iterator[Figure]:
    """The Affiner and our LoRA beside PEFT's LoRA of the same rank, so of the same size to a hundredth."""
    import peft

    size, side = bench.size, bench.size.side
    config = peft.LoraConfig(r=size.rank, lora_alpha=size.rank, target_modules=TARGETS, lora_dropout=0.0)
    for batch in size.batches:
        wrapped = peft.get_peft_model(bench.backbone(side), config)
        theirs = Tuned(bench, wrapped, task(size, 0, side), batch)
        ways = {kind: bench.training(side, [0], batch, kind) for kind in ("affiner", "lora")}
        x, t, rows = inputs(bench, side, 2)
        with torch.no_grad():
            for kind, run in ways.items():
                same(
                    f"batch {batch}: {kind} and PEFT at their start",
                    run.model(x, t, rows, ["task 0"] * 2),
                    wrapped(x, t, rows),
                )
        count = sum(p.numel() for p in theirs.trained)
        times = bench.timed({"peft": theirs.step} | {kind: run.train_step for kind, run in ways.items()})
        where = f"{side**2} tokens, batch {batch}"
        kept = held_after(wrapped, x, t, rows)
        for kind, run in ways.items():
            model = run.model
            own = held_after(model.denoise, x, t, rows, model.plan(["task 0"] * 2))
            goal = 1.0 if size.width >= 1000 and kind == "affiner" else None
            yield Figure(
                f"{where}: {kind} step ÷ PEFT's LoRA", "×", ratio(times[kind], times["peft"]), None, goal
            )
            if batch == size.batches[0]:
                total = sum(p.numel() for p in run.trained().values())
                yield Figure(
                    f"{kind}: saved activations ÷ PEFT's LoRA", "×", Spread.of([own / kept]), None, goal
                )
                yield Figure(f"  {kind}: trained parameters ÷ PEFT's LoRA", "×", Spread.of([total / count]))
        del wrapped, theirs, ways
        gc.collect()


def latents(bench: Bench) -> Iterator[Figure]:
    """A step on latents that were kept over one that encodes its images, as it would without a cache."""
    size, side, batch = bench.size, bench.size.side, min(4, max(bench.size.batches))
    encoder = backbone_of(size, side, vae=True).to(bench.device)
    pictures = torch.rand(batch, 3, 16 * side, 16 * side, device=bench.device) * 2 - 1
    for name, mask in (("", UNMASKED), (", masked", MASKED)):
        run = bench.training(side, [0], batch, mask_ratio=mask)

        def live(run: CoTraining = run) -> None:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=run.half):
                encoder.encode(pictures)
            run.train_step()

        if encoder.encode(pictures).shape[1:] != run.tasks[0].images.shape[1:]:
            raise SystemExit("The VAE's latents are not what the step trains on.")
        times = bench.timed({"live": live, "cached": run.train_step})
        goal = None if size.width < 1000 else 0.55 if name and bench.device.type == "cuda" else 0.70
        where = f"{side**2} tokens, batch {batch}{name}"
        yield Figure(
            f"{where}: cached ÷ live VAE step", "×", ratio(times["cached"], times["live"]), None, goal
        )


PARTS = (flop_model, steps, together, saved, against_peft, latents)


def facts_of(size: Size, device: torch.device, clock: str) -> dict[str, Any]:
    """Which machine and which versions, so that figures can be told apart."""
    import peft

    machine = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    return {
        "size": vars(size),
        "machine": machine,
        "threads": torch.get_num_threads(),
        "precision": "bf16 autocast" if halved("auto", device) else "fp32",
        "clock": clock,
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "torch": torch.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
    }


def processor() -> str:
    """The processor's name, where the system tells it, and how many of them there are."""
    names = (
        [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} processors"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a narrower backbone, about a minute; no targets"
    )
    parser.add_argument("--tiny", action="store_true", help="only to see that it runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: DiT-XL/2 whole, bf16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--threads", type=int, help="torch's threads; its own choice where not given")
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS], help="one part of the figures")
    chosen = parser.parse_args()
    if not os.environ.keys() >= ALLOCATOR.keys():  # both sides: as in a training by Affinery
        os.execve(sys.executable, sys.orig_argv, os.environ | ALLOCATOR)  # noqa: S606
    warnings.filterwarnings("ignore")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    whole = H200 if device.type == "cuda" else FULL
    size = TINY if chosen.tiny else QUICK if chosen.quick else whole
    facts = facts_of(size, device, chosen.clock)
    print(f"{size.label}; {facts['machine']}, {facts['threads']} thread(s); load {facts['load']}", flush=True)
    bench = Bench(size, CLOCKS[chosen.clock], device)
    figures: list[Figure] = []
    for part in PARTS:
        if chosen.only in (None, part.__name__):
            figures += part(bench)
            gc.collect()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    caption = f"medians of {size.rounds} rounds (lowest–highest); {versions}"
    show(size.label, f"{facts['threads']} thread(s), {chosen.clock} time; {caption}", figures)
    if chosen.json:
        write(chosen.json, facts, figures)


if __name__ == "__main__":
    main()

"""Adapters side by side with PEFT: one process, the same backbone, the same tensors, CPU.

    python -m benchmarks.adapters [--quick] [--json FILE]

Both sides get a copy of one frozen DiT and the same LoRA tensors. Their outputs are compared first; then each
figure takes its times in turns (see `timing`), and forward passes are given as multiples of the bare
backbone's, taken in the same rounds.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from affinery.adapters.files import Adapter, AdapterMeta, adapter_bytes, read_adapter
from affinery.backbones.contract import Backbone, BackboneSpec
from affinery.backbones.dit import DiT
from affinery.composed import ComposedModel
from affinery.interchange import write_peft
from benchmarks.timing import CLOCKS, Figure, Spread, Stopwatch, show, write

FINGERPRINT = "b" * 64
CLASSES = 10
TASK_CLASSES = 5
TARGETS = ("qkv", "proj", "fc1", "fc2")
COUNTS = (1, 2, 4, 8, 16, 32)
LOADED = 64
LOADED_DEPTH = 12


@dataclass(frozen=True)
class Size:
    """The backbone, the batch and how often each way is timed. side: of an image, in patches."""

    width: int
    depth: int
    heads: int
    side: int
    rank: int
    batch: int
    rounds: int

    @property
    def label(self) -> str:
        return (
            f"DiT of width {self.width}, depth {self.depth}, {self.side**2} tokens; batch {self.batch}; "
            f"rank {self.rank} on {', '.join(TARGETS)}"
        )


# Arithmetic takes nearly all of the time of the first two, calls that of the last: one sample a task.
FULL = Size(width=768, depth=2, heads=12, side=8, rank=16, batch=32, rounds=5)
QUICK = Size(width=384, depth=3, heads=6, side=8, rank=16, batch=32, rounds=5)
SMALL = Size(width=128, depth=6, heads=4, side=4, rank=8, batch=8, rounds=25)


def build(size: Size) -> Backbone:
    """A frozen DiT, no weight of which is zero."""
    spec = BackboneSpec(
        arch="dit",
        config={"width": size.width, "depth": size.depth, "heads": size.heads, "patch": 2},
        class_names=tuple(f"class {i}" for i in range(CLASSES)),
        image_size=2 * size.side,
        channels=4,
    )
    model = DiT.build(spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.freeze()


def trained(model: ComposedModel, kind: str, size: Size, number: int) -> Adapter:
    """Task number's adapter, as if it were trained: no tensor of it is zero. The model is left as it was."""
    first = CLASSES + 1 + TASK_CLASSES * number
    meta = AdapterMeta(
        task=f"{kind} {number}",
        kind=kind,
        config={"rank": size.rank, "targets": list(TARGETS)},
        backbone=FINGERPRINT,
        null_index=CLASSES,
        block=(first, first + TASK_CLASSES),
        class_names=tuple(f"class {i}" for i in range(TASK_CLASSES)),
    )
    generator = torch.Generator().manual_seed(number)
    model.start(meta, generator)
    tensors = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.adapter(meta.task).tensors.items()
    }
    model.unload(meta.task)
    return Adapter(meta, tensors)


@dataclass(frozen=True)
class Inputs:
    """One batch. rows: of the backbone's own class table, which both sides have."""

    x: Tensor
    t: Tensor
    rows: Tensor

    @classmethod
    def of(cls, size: Size) -> Inputs:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(size.batch, 4, 2 * size.side, 2 * size.side, generator=generator)
        t = torch.randint(1000, (size.batch,), generator=generator)
        return cls(x, t, torch.randint(CLASSES + 1, (size.batch,), generator=generator))


class Ours:
    """A composed model, and the forward pass of a batch whose samples take turns in so many tasks."""

    def __init__(self, backbone: Backbone, inputs: Inputs) -> None:
        self.model = ComposedModel(copy.deepcopy(backbone), FINGERPRINT)
        self.inputs = inputs

    def tasks(self, kind: str, count: int) -> list[str]:
        return [f"{kind} {i % count}" for i in range(len(self.inputs.x))]

    @torch.no_grad()
    def forward(self, tasks: list[str]) -> Tensor:
        out: Tensor = self.model(self.inputs.x, self.inputs.t, self.inputs.rows, tasks)
        return out


class Theirs:
    """PEFT on the same backbone, with the same tensors."""

    def __init__(self, backbone: Backbone, inputs: Inputs, first: Path) -> None:
        self.model = peft.PeftModel.from_pretrained(copy.deepcopy(backbone), first, adapter_name=first.name)
        self.model.eval()
        self.inputs = inputs

    def load(self, folder: Path) -> None:
        self.model.load_adapter(folder, folder.name)

    @torch.no_grad()
    def forward(self, names: list[str] | None = None) -> Tensor:
        """names: an adapter for each sample; None: the active one for all."""
        named = {} if names is None else {"adapter_names": names}
        out: Tensor = self.model(self.inputs.x, self.inputs.t, self.inputs.rows, **named)
        return out


class Adapters:
    """The same adapters in files of both sides, made where they are first asked for."""

    def __init__(self, folder: Path, backbone: Backbone, size: Size) -> None:
        self.folder, self.backbone, self.size = folder, backbone, size
        self.model = ComposedModel(copy.deepcopy(backbone), FINGERPRINT)

    def ours(self, kind: str, number: int) -> Path:
        path = self.folder / f"{kind} {number}.safetensors"
        if not path.exists():
            path.write_bytes(adapter_bytes(trained(self.model, kind, self.size, number)))
        return path

    def theirs(self, number: int) -> Path:
        folder = self.folder / f"lora-{number}"
        if not folder.exists():
            write_peft(read_adapter(self.ours("lora", number)), self.backbone, folder)
        return folder


@dataclass(frozen=True)
class Bench:
    """What every figure needs."""

    watch: Stopwatch
    size: Size
    backbone: Backbone
    inputs: Inputs
    files: Adapters

    @classmethod
    def of(cls, watch: Stopwatch, size: Size, folder: Path) -> Bench:
        folder.mkdir()
        backbone = build(size)
        return cls(watch, size, backbone, Inputs.of(size), Adapters(folder, backbone, size))

    def bare(self) -> Callable[[], Tensor]:
        inputs = self.inputs

        @torch.no_grad()
        def forward() -> Tensor:
            out: Tensor = self.backbone(inputs.x, inputs.t, inputs.rows)
            return out

        return forward

    def composed(self, kind: str, count: int) -> Ours:
        ours = Ours(self.backbone, self.inputs)
        for number in range(count):
            ours.model.load(read_adapter(self.files.ours(kind, number)))
        return ours

    def peft(self, count: int) -> Theirs:
        theirs = Theirs(self.backbone, self.inputs, self.files.theirs(0))
        for number in range(1, count):
            theirs.load(self.files.theirs(number))
        return theirs


def check_equal(bench: Bench, ours: Ours, theirs: Theirs, count: int) -> None:
    """Both sides give the same, alone and mixed, and it is not what the bare backbone gives."""
    numbers = [i % count for i in range(bench.size.batch)]
    theirs.model.set_adapter("lora-0")
    pairs = [
        (ours.forward(ours.tasks("lora", 1)), theirs.forward()),
        (ours.forward(ours.tasks("lora", count)), theirs.forward([f"lora-{n}" for n in numbers])),
    ]
    bare = bench.bare()()
    for one, other in pairs:
        difference = float((one - other).abs().max() / other.abs().max())
        changed = float((other - bare).abs().max() / bare.abs().max())
        if not (difference <= 1e-5 and changed >= 1e-3):
            raise SystemExit(f"The sides differ by {difference:.1e} (the adapters change {changed:.1e}).")
        print(f"outputs of both sides differ by {difference:.1e}; the adapters change them by {changed:.1e}")


def mixed(bench: Bench) -> Iterator[Figure]:
    """A batch of eight tasks over the bare backbone; and however many tasks, over eight."""
    ours = {kind: bench.composed(kind, max(COUNTS)) for kind in ("lora", "affiner")}
    theirs = bench.peft(8)
    check_equal(bench, ours["lora"], theirs, 8)
    counts = [count for count in COUNTS if count <= bench.size.batch]
    names = [f"lora-{i % 8}" for i in range(bench.size.batch)]
    ways: dict[str, Callable[[], object]] = {
        "peft 1": theirs.forward,
        "peft 8": partial(theirs.forward, names),
    }
    for kind, one in ours.items():
        for count in counts:
            ways[f"{kind} {count}"] = partial(one.forward, one.tasks(kind, count))
    ratios = bench.watch.over(bench.bare(), ways, bench.size.rounds)
    spread = {name: Spread.of(values) for name, values in ratios.items()}
    where = f"width {bench.size.width}, batch {bench.size.batch}"
    yield Figure(f"{where}: mixed batch of 8 tasks, LoRA", "×", spread["lora 8"], spread["peft 8"], 1.6)
    yield Figure(f"{where}: mixed batch of 8 tasks, Affiner", "×", spread["affiner 8"], None, 1.6)
    single = spread["lora 1"], spread["peft 1"]
    yield Figure(f"{where}: batch of one task, LoRA", "×", *single, bound_by_theirs=True)
    for kind in ours:
        for count in counts:
            yield Figure(f"  {where}: {kind}, tasks in the batch: {count}", "×", spread[f"{kind} {count}"])
        apart = [100 * abs(spread[f"{kind} {n}"].median / spread[f"{kind} 8"].median - 1) for n in counts]
        name = f"{where}: {kind}, 1 to {max(counts)} tasks against 8"
        yield Figure(name, "% apart", Spread.of([max(apart)]), None, 10)


def loaded_beside(bench: Bench) -> Iterator[Figure]:
    """What loaded tasks that a batch does not use cost it."""
    few, many = bench.composed("lora", 1), bench.composed("lora", LOADED)
    tasks = few.tasks("lora", 1)
    if not torch.equal(few.forward(tasks), many.forward(tasks)):
        raise SystemExit("A task's result depends on which others are loaded.")
    ratios = bench.watch.over(
        partial(few.forward, tasks), {"many": partial(many.forward, tasks)}, bench.size.rounds
    )
    name = f"one task's batch, {LOADED} loaded over 1 loaded"
    yield Figure(name, "×", Spread.of(ratios["many"]), None, 1.1)


def loading(bench: Bench) -> Iterator[Figure]:
    """The last of many adapters: reading and checking its file, and joining the model; then switching."""
    ours, joins = Ours(bench.backbone, bench.inputs), []
    for number in range(LOADED - 1):
        found = read_adapter(bench.files.ours("lora", number))
        joins.append(1000 * bench.watch.seconds(partial(ours.model.load, found)))
    theirs = bench.peft(LOADED - 1)
    name, file, folder = (
        f"lora {LOADED - 1}",
        bench.files.ours("lora", LOADED - 1),
        bench.files.theirs(LOADED - 1),
    )
    times: dict[str, list[float]] = {part: [] for part in ("read", "join", "all", "out", "peft", "peft out")}
    for _ in range(bench.size.rounds):
        read: list[Adapter] = []
        times["read"].append(bench.watch.seconds(partial(lambda into: into.append(read_adapter(file)), read)))
        times["join"].append(bench.watch.seconds(partial(lambda found: ours.model.load(found[0]), read)))
        times["all"].append(times["read"][-1] + times["join"][-1])
        times["peft"].append(bench.watch.seconds(lambda: theirs.load(folder)))
        times["out"].append(bench.watch.seconds(lambda: ours.model.unload(name)))
        times["peft out"].append(bench.watch.seconds(lambda: theirs.model.delete_adapter(folder.name)))
    spread = {part: Spread.of([1000 * value for value in values]) for part, values in times.items()}
    yield Figure(f"loading adapter {LOADED}, file to model, checked", "ms", spread["all"], spread["peft"], 20)
    yield Figure("  of which reading and checking the file", "ms", spread["read"])
    yield Figure("  of which joining the model", "ms", spread["join"])
    slowest = Spread.of([max(joins)])
    yield Figure(f"  the slowest of the {LOADED - 1} before it, which made room", "ms", slowest)
    yield Figure("unloading it", "ms", spread["out"], spread["peft out"])
    yield from switching(bench, ours, theirs)
    tensors = read_adapter(file).tensors.values()
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    stacks = sum(p.numel() * p.element_size() for n, p in ours.model.named_parameters() if ".banks." in n)
    peft_held = sum(p.numel() * p.element_size() for n, p in theirs.model.named_parameters() if ".lora_" in n)
    mib, count = 2**20, LOADED - 1
    yield Figure(
        "an adapter's own tensors", "MiB", Spread.of([held / mib]), Spread.of([peft_held / count / mib])
    )
    ours_each, theirs_each = Spread.of([stacks / count / mib]), Spread.of([peft_held / count / mib])
    yield Figure("memory that one of the loaded takes, spare room included", "MiB", ours_each, theirs_each)


def switching(bench: Bench, ours: Ours, theirs: Theirs) -> Iterator[Figure]:
    """From one task to another, and to a mix: all that is not the forward pass."""
    mix = ours.tasks("lora", 8)
    rows = torch.tensor([CLASSES + 1 + TASK_CLASSES * (i % 8) for i in range(bench.size.batch)])
    turn = iter(range(10**9))

    def switch_ours() -> None:
        number = next(turn) % 32
        with torch.no_grad():
            ours.model.plan([f"lora {number}"] * bench.size.batch)
            ours.model.embed(rows + number)

    def mix_ours() -> None:
        with torch.no_grad():
            ours.model.plan(mix)
            ours.model.embed(rows)

    def switch_theirs() -> None:
        theirs.model.set_adapter(f"lora-{next(turn) % 32}")

    ways = {"ours": switch_ours, "mix": mix_ours, "theirs": switch_theirs}
    times = bench.watch.in_turns(ways, 20 * bench.size.rounds)
    spread = {name: Spread.of([1000 * value for value in values]) for name, values in times.items()}
    yield Figure(f"switching tasks, {LOADED - 1} loaded", "ms", spread["ours"], spread["theirs"], 1)
    yield Figure("switching to a mix of 8 tasks", "ms", spread["mix"], None, 1)


def compiled() -> Iterator[Figure]:
    """Graphs that torch.compile makes over several mixes of tasks: one, and no break in it."""
    from torch._dynamo.utils import counters

    small = Size(width=32, depth=2, heads=2, side=4, rank=4, batch=8, rounds=1)
    backbone, inputs = build(small), Inputs.of(small)
    ours = Ours(backbone, inputs)
    maker = ComposedModel(copy.deepcopy(backbone), FINGERPRINT)
    for kind, number in (("lora", 0), ("lora", 1), ("affiner", 2)):
        ours.model.load(trained(maker, kind, small, number))
    mixes = [
        ["lora 0"] * 8,
        ["lora 0", "lora 1"] * 4,
        ["affiner 2", "lora 1"] * 4,
        ["lora 1"] * 7 + ["affiner 2"],
    ]
    eager = [ours.forward(mix) for mix in mixes]
    torch._dynamo.reset()
    counters.clear()
    ours.model.compiled(backend="eager")
    for mix, expected in zip(mixes, eager, strict=True):
        torch.testing.assert_close(ours.forward(mix), expected, rtol=1e-4, atol=1e-5)
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    yield Figure(f"torch.compile: graphs for {len(mixes)} mixes", "", Spread.of([float(graphs)]), None, 1)
    yield Figure("torch.compile: graph breaks", "", Spread.of([float(breaks)]), None, 0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller backbone, about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--threads", type=int, help="torch's threads; its own choice where not given")
    parser.add_argument("--rounds", type=int, help="how often each way is timed")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    size, watch = QUICK if chosen.quick else FULL, CLOCKS[chosen.clock]
    if chosen.rounds:
        size = replace(size, rounds=chosen.rounds)
    versions = {
        "torch": torch.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }
    facts: dict[str, Any] = {
        "size": vars(size),
        "threads": torch.get_num_threads(),
        "clock": chosen.clock,
        "load": os.getloadavg()[0],
        "versions": versions,
    }
    print(f"{size.label}; {facts['threads']} thread(s); load {facts['load']:.1f}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        large = Bench.of(watch, size, Path(folder) / "large")
        deep = Bench.of(watch, replace(size, depth=LOADED_DEPTH), Path(folder) / "deep")
        small = Bench.of(watch, SMALL, Path(folder) / "small")
        for part, bench in ((mixed, large), (mixed, small), (loaded_beside, large), (loading, deep)):
            figures += part(bench)
            gc.collect()
    figures += compiled()
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    caption = f"medians of {size.rounds} rounds (lowest–highest); × of the bare backbone; {named}"
    show(size.label, f"{facts['threads']} thread(s), {chosen.clock} time; {caption}", figures)
    if chosen.json:
        write(chosen.json, facts, figures)


if __name__ == "__main__":
    main()

"""The papers' tables: methods × datasets, baselines, ablations, ladders, and what one model forgets.

    python -m benchmarks.papers --out runs/papers --quick            about a minute, to see that it runs
    python -m benchmarks.papers --out runs/papers                    hours on a CPU; minutes a table on a GPU
    python -m benchmarks.papers --out runs/papers --only methods     one table

Every cell is kept as JSON in OUT/cells: a run that was broken off goes on, and only what changed is computed.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from affinery import tensor_files
from affinery.backbones.files import load_backbone
from benchmarks.papers.backbones import pretrain
from benchmarks.papers.cells import Bench, Cell, Sampling
from benchmarks.papers.data import prepare
from benchmarks.papers.page import Facts, page, sheets
from benchmarks.papers.sequences import sequence
from benchmarks.papers.tables import PROFILES, Profile, Table, tables
from trainers.packs import read_manifest

SEQUENCES = "forgetting"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def made(out: Path, profile: Profile, name: str, wanted: list[Table], forgetting: bool) -> Bench:
    """Prepares the data and pretrains the backbones that these tables need, as far as they are not there."""
    cells = [cell for table in wanted for row in table.rows for each in row.cells.values() for cell in each]
    archs = {cell.backbone for cell in cells} | ({"dit"} if forgetting else set())
    pretrained = sorted(archs - ({"dit"} if profile.shipped else set()))
    names = {cell.dataset for cell in cells} | ({profile.pretraining} if pretrained else set())
    packs = prepare(out, sorted(names | {n for order in profile.orders for n in order if forgetting}))
    backbones = {"dit": shipped_backbone()} if profile.shipped and "dit" in archs else {}
    for arch in pretrained:
        size = f"{profile.size}x{profile.channels}-{profile.width}-{profile.pretraining_steps}"
        file = out / "backbones" / f"{arch}-{profile.pretraining}-{size}.safetensors"
        backbones[arch] = pretrain(
            arch,
            packs[profile.pretraining],
            file,
            size=profile.size,
            channels=profile.channels,
            width=profile.width,
            steps=profile.pretraining_steps,
            batch=profile.pretraining_batch,
            on_step=partial(_pretrained, arch),
        )
    sampling = Sampling(profile.samples, profile.sampler_steps, profile.guidance)
    return Bench(out / name, backbones, packs, sampling)


def shipped_backbone() -> Path:
    """The transformer that comes with Affinery."""
    return Path(str(files("affinery_app") / "assets" / "backbones" / "tiny-dit.safetensors"))


def _pretrained(arch: str, step: int, of: int, loss: float) -> None:
    say(f"pretraining {arch} {step}/{of}: loss {loss:.4f}")


def chosen(profile: Profile, only: list[str] | None) -> tuple[list[Table], bool]:
    """The tables that are meant, and whether the sequences are. Raises SystemExit for an unknown one."""
    every = tables(profile)
    known = [*(table.name for table in every), SEQUENCES]
    if unknown := set(only or ()) - set(known):
        raise SystemExit(f"There is no table {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    return [each for each in every if not only or each.name in only], not only or SEQUENCES in only


def computed(
    bench: Bench, wanted: list[Table], kept: bool
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """By table, row and dataset, the cells. kept: those that are there, computing none."""
    listed = [
        (table.name, row.name, dataset, cell)
        for table in wanted
        for row in table.rows
        for dataset, cells in row.cells.items()
        for cell in cells
    ]
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for number, (table, row, dataset, cell) in enumerate(listed, 1):
        began = time.perf_counter()
        one = bench.known(cell) if kept else bench.measured(cell)
        if one is None:
            continue
        say(f"[{number}/{len(listed)}] {table}: {row} on {dataset}, {time.perf_counter() - began:.1f} s")
        found.setdefault((table, row, dataset), []).append(one)
    return found


def sequences(bench: Bench, profile: Profile) -> list[dict[str, Any]]:
    recipe = {
        "steps": profile.steps,
        "batch": profile.batch,
        "lr": 3e-4,
        "class_lr": 3e-2,
        "precision": "fp32",
    }
    found = []
    for order in profile.orders:
        for seed in range(profile.seeds):
            like = Cell("dit", order[0], "full", {}, recipe | {"seed": seed})
            say(f"{SEQUENCES}: {' → '.join(order)}, seed {seed}")
            found.append(sequence(bench, order, like))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="where packs, backbones and cells are kept")
    parser.add_argument("--profile", choices=[*PROFILES], default="small", help="how long everything takes")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: --profile quick")
    parser.add_argument("--kept", action="store_true", help="compute nothing: a page of what is there")
    parser.add_argument("--steps", type=int, help="training steps of every cell")
    parser.add_argument("--seeds", type=int, help="seeds of every cell")
    parser.add_argument("--pretraining-steps", type=int, help="steps of pretraining both backbones")
    parser.add_argument("--only", nargs="*", metavar="TABLE", help="only these tables")
    parser.add_argument("--page", type=Path, help="the page to write (default: OUT/results.md)")
    args = parser.parse_args()
    name = "quick" if args.quick else args.profile
    given = {"steps": args.steps, "seeds": args.seeds, "pretraining_steps": args.pretraining_steps}
    profile = replace(PROFILES[name], **{key: value for key, value in given.items() if value is not None})
    wanted, forgetting = chosen(profile, args.only)
    bench = made(args.out, profile, name, wanted, forgetting)
    found = computed(bench, wanted, args.kept)
    forgotten = sequences(bench, profile) if forgetting else []
    target = args.page or args.out / "results.md"
    pictures = target.with_name(f"{target.stem}-pictures")
    for (table, dataset), content in sheets(wanted, found, bench.out / "cells").items():
        tensor_files.write_whole(pictures / f"{table}-{dataset}.png", content)
    text = page(facts(args, name, profile, bench), wanted, found, forgotten, pictures.name)
    tensor_files.write_whole(target, text.encode())
    print(target)


def facts(args: argparse.Namespace, name: str, profile: Profile, bench: Bench) -> Facts:
    words = ["python -m benchmarks.papers --out runs/papers"]
    words += [] if name == "small" else [f"--profile {name}"]
    for option in ("steps", "seeds", "pretraining_steps"):
        value = getattr(args, option)
        words += [] if value is None else [f"--{option.replace('_', '-')} {value}"]
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU thread(s)"
    )
    images = f"{profile.size} × {profile.size}, {'colour' if profile.channels == 3 else 'grey'}"
    about = {}
    for arch, file in bench.backbones.items():
        count = sum(parameter.numel() for parameter in load_backbone(file).parameters())
        about[arch] = (
            f"{count:,} parameters, {profile.pretraining_steps:,} steps on {profile.pretraining}, {images}"
        )
    manifests = {each: read_manifest(folder) for each, folder in bench.packs.items()}
    listed = {
        each: f"{len(m.images):,} images, {len(m.classes)} classes; {m.licence}; {m.source}"
        for each, m in manifests.items()
    }
    how = (
        f"{profile.steps:,} steps of {profile.batch}, {profile.seeds} seed(s); {profile.samples} samples, "
        f"DDIM {profile.sampler_steps} steps, guidance {bench.sampling.guidance:g}."
    )
    return Facts(" ".join(words), name, device, how, about, listed)


if __name__ == "__main__":
    main()

"""The papers' tables: methods × datasets, baselines, ablations, ladders, and what one model forgets.

    python -m benchmarks.papers --out runs/papers --quick            about a minute, to see that it runs
    python -m benchmarks.papers --out runs/papers --profile short    on the shipped backbone; an hour of a CPU
    python -m benchmarks.papers --out runs/papers                    hours on a CPU; minutes a table on a GPU
    python -m benchmarks.papers --out runs/papers --only methods     one table
    python -m benchmarks.papers --out runs/papers --profile paper --data … --dit … --sd … --extractor …

Every cell is kept as JSON in OUT/PROFILE/cells: a run that was broken off goes on, and only what changed is
computed. --kept computes nothing, and writes the page of what is there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from affinery import tensor_files
from affinery.backbones.files import load_backbone
from affinery.errors import AffineryError
from benchmarks.papers.cells import Bench, Cell
from benchmarks.papers.curves import drawn, trajectory
from benchmarks.papers.figures import figures
from benchmarks.papers.page import Facts, page, sheets
from benchmarks.papers.preparing import Own, made, say, there
from benchmarks.papers.profiles import PROFILES, Profile
from benchmarks.papers.sequences import Bounds, figure, joint, sequence
from benchmarks.papers.tables import FIRST, FULL, OURS, Methods, Table, tables
from benchmarks.timing import write
from trainers.errors import TrainingDiverged
from trainers.packs import read_manifest

SEQUENCES, STEPS = "forgetting", "steps"


@dataclass(frozen=True)
class Wanted:
    """What is to be computed: tables, the sequences, the distance over steps."""

    tables: list[Table]
    sequences: bool
    steps: bool

    def beside(self, profile: Profile) -> set[str]:
        """The datasets that are needed for more than tables."""
        found = {name for order in profile.orders for name in order} if self.sequences else set()
        return found | ({profile.ablated} if self.steps else set())


def chosen(profile: Profile, only: list[str] | None, rows: list[str] | None) -> Wanted:
    """Raises SystemExit for a table or a row that does not exist."""
    every = tables(profile)
    known = [*(table.name for table in every), SEQUENCES, STEPS]
    if unknown := set(only or ()) - set(known):
        raise SystemExit(f"There is no table {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    meant = [each for each in every if not only or each.name in only]
    if rows:
        named = [row.name for table in meant for row in table.rows]
        if missing := set(rows) - set(named):
            raise SystemExit(f"There is no row {sorted(missing)[0]!r}. Known: {', '.join(named)}")
        meant = [replace(each, rows=[row for row in each.rows if row.name in rows]) for each in meant]
    return Wanted(meant, not only or SEQUENCES in only, not only or STEPS in only)


def computed(
    bench: Bench, wanted: list[Table]
) -> tuple[dict[tuple[str, str, str], list[dict[str, Any]]], list[str]]:
    """→ by table, row and dataset, the cells; and in words, those whose training diverged"""
    listed = [
        (table.name, row.name, dataset, cell)
        for table in wanted
        for row in table.rows
        for dataset, cells in row.cells.items()
        for cell in cells
    ]
    # A run that is broken off has compared all methods alike: seed by seed, dataset by dataset.
    orders = {table.name: number for number, table in enumerate(wanted)}
    listed.sort(key=lambda each: (orders[each[0]], each[3].recipe["seed"], each[2]))
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    diverged = []
    for number, (table, row, dataset, cell) in enumerate(listed, 1):
        began = time.perf_counter()
        try:
            one = bench.asked(partial(bench.measured, cell))
        except TrainingDiverged as error:
            diverged.append(f"{table}: {row} on {dataset}, seed {cell.recipe['seed']}: {error}")
            say(f"[{number}/{len(listed)}] {diverged[-1]}")
            continue
        if one is None:
            continue
        if not bench.frozen:
            say(f"[{number}/{len(listed)}] {table}: {row} on {dataset}, {time.perf_counter() - began:.1f} s")
        found.setdefault((table, row, dataset), []).append(one)
    return found, diverged


def bounds(bench: Bench, profile: Profile) -> Bounds:
    """The sequences, all tasks at once, and an adapter a task, as far as they are there or may be."""
    methods = Methods(profile)
    names = sorted({name for order in profile.orders for name in order})
    found = Bounds([], [], [])
    for seed in range(profile.beside):

        def cell(name: str, method: str, seed: int = seed) -> Cell:
            return methods.cells(methods.by_name[method], name, profile.beside)[seed]

        for order in profile.orders:
            say(f"{SEQUENCES}: {' → '.join(order)}, seed {seed}")
            if one := bench.asked(partial(sequence, bench, order, cell(order[0], FULL))):
                found.sequences.append(one)
        say(f"{SEQUENCES}: all at once, an adapter each, seed {seed}")
        if together := bench.asked(partial(joint, bench, names, cell(names[0], FULL))):
            found.together.append(together["tasks"])
        apart = {name: bench.asked(partial(bench.measured, cell(name, OURS))) for name in names}
        if all(apart.values()):
            found.apart.append({name: figure(one["results"]) for name, one in apart.items() if one})
    return found


def trajectories(bench: Bench, profile: Profile) -> bytes | None:
    """The picture of the distance over steps; None where nothing is there to draw."""
    methods, lines = Methods(profile), {}
    for name in FIRST:
        cell = methods.cells(methods.by_name[name], profile.ablated, 1)[0]
        say(f"{STEPS}: {name}")
        if one := bench.asked(partial(trajectory, bench, cell)):
            lines[name] = one["points"]
    return drawn(lines, profile.ablated) if lines else None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="where packs, backbones and cells are kept")
    parser.add_argument("--profile", choices=[*PROFILES], default="small", help="how long everything takes")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: --profile quick")
    parser.add_argument("--steps", type=int, help="training steps of every cell")
    parser.add_argument("--seeds", type=int, help="seeds of every cell")
    parser.add_argument("--pretraining-steps", type=int, help="steps of pretraining both backbones")
    parser.add_argument("--only", nargs="*", metavar="TABLE", help="only these tables")
    parser.add_argument("--row", nargs="*", metavar="ROW", help="only these rows of them")
    parser.add_argument("--kept", action="store_true", help="compute nothing: a page of what is there")
    parser.add_argument("--page", type=Path, help="the page to write (default: OUT/results.md)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure there too, with targets"
    )
    parser.add_argument("--words", type=Path, help="Markdown to put above the tables")
    parser.add_argument("--data", type=Path, help="the folder of the papers' datasets")
    parser.add_argument("--dit", type=Path, help="DiT-XL/2: diffusers' folder, or the official checkpoint")
    parser.add_argument("--sd", type=Path, help="Stable Diffusion 1.5: diffusers' folder")
    parser.add_argument("--extractor", default="recogniser", help="who looks, as `affinery evaluate` has it")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        print(written(args))
    except AffineryError as error:
        raise SystemExit(str(error)) from error


def written(args: argparse.Namespace) -> Path:
    """Everything that was asked for, computed and written. → the page"""
    name = "quick" if args.quick else args.profile
    given = {"steps": args.steps, "seeds": args.seeds, "pretraining_steps": args.pretraining_steps}
    given |= {"costly_seeds": args.seeds, "later_seeds": args.seeds, "later_steps": args.steps}
    profile = replace(PROFILES[name], **{key: value for key, value in given.items() if value is not None})
    wanted = chosen(profile, args.only, args.row)
    own = Own(args.data, {"dit": args.dit, "sd": args.sd}, args.extractor)
    bench = (
        there(args.out, profile, name, own)
        if args.kept
        else made(args.out, profile, name, wanted.tables, wanted.beside(profile), own)
    )
    found, diverged = computed(bench, wanted.tables)
    target: Path = args.page or args.out / "results.md"
    pictures = target.with_name(f"{target.stem}-pictures")
    for (table, dataset), content in sheets(wanted.tables, found, bench.out / "cells").items():
        tensor_files.write_whole(pictures / f"{table}-{dataset}.png", content)
    over_steps = trajectories(bench, profile) if wanted.steps else None
    if over_steps is not None:
        tensor_files.write_whole(pictures / f"steps-{profile.ablated}.png", over_steps)
    beside = bounds(bench, profile) if wanted.sequences else None
    text = page(
        facts(args, name, profile, bench),
        wanted.tables,
        found,
        beside,
        pictures.name,
        [] if over_steps is None else [f"steps-{profile.ablated}.png"],
        diverged,
    )
    tensor_files.write_whole(target, text.encode())
    if args.json:
        write(args.json, {"profile": name} | asdict(profile), figures(wanted.tables, found, beside))
    return target


def facts(args: argparse.Namespace, name: str, profile: Profile, bench: Bench) -> Facts:
    words = ["python -m benchmarks.papers --out runs/papers"]
    words += [] if name == "small" else [f"--profile {name}"]
    for option in ("steps", "seeds", "pretraining_steps"):
        value = getattr(args, option)
        words += [] if value is None else [f"--{option.replace('_', '-')} {value}"]
    words += ["--data … --dit … --sd …"] if profile.local else []
    words += [] if args.extractor == "recogniser" else ["--extractor …"]
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU thread(s)"
    )
    about = {arch: _backbone(profile, arch, file) for arch, file in bench.backbones.items()}
    manifests = {each: read_manifest(folder) for each, folder in bench.packs.items()}
    listed = {
        each: f"{len(m.images):,} images, {len(m.classes)} classes; {m.licence}; {m.source}"
        for each, m in manifests.items()
    }
    later = f" ({profile.later_steps:,} beyond the methods)" if profile.later_steps else ""
    how = (
        f"{profile.steps:,} steps of {profile.batch}{later}; {profile.seeds} seed(s) of methods × "
        f"datasets, {profile.beside} of the CNN and of sequences, {profile.later_seeds} of "
        f"everything else; {profile.samples} samples, DDIM {profile.sampler_steps} steps, "
        f"guidance {bench.sampling.guidance:g}; "
        f"{profile.mask_ratio:.0%} of a transformer's tokens masked where a table does not say otherwise."
    )
    said = args.words.read_text(encoding="utf-8") if args.words else ""
    images = f"{profile.size} × {profile.size}, {'colour' if profile.channels == 3 else 'grey'}"
    title = "The papers' tables" + ("" if profile.local else f" at small scale: {images}")
    return Facts(" ".join(words), name, device, how, about, listed, said, title)


def _backbone(profile: Profile, arch: str, file: Path) -> str:
    backbone = load_backbone(file)
    spec, count = backbone.spec, sum(parameter.numel() for parameter in backbone.parameters())
    images = f"{spec.image_size} × {spec.image_size}, {'colour' if spec.channels == 3 else 'grey'}"
    if profile.local:
        origin = "a folder of the user's"
    elif profile.shipped and arch == "dit":
        origin = "`tiny-dit`, which comes with Affinery"
    else:
        origin = (
            f"{profile.pretraining_steps:,} steps of {profile.pretraining_batch} on {profile.pretraining}"
        )
    return f"{count:,} parameters, {images}; {origin}"


if __name__ == "__main__":
    main()

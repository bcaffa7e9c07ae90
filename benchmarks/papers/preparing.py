"""What a run needs before its first cell: packs, and backbones shipped, pretrained, or of the user's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch

from affinery.backbones.files import save_backbone
from affinery.backbones.imports import import_backbone
from benchmarks.papers.backbones import pretrain
from benchmarks.papers.cells import Bench, Sampling
from benchmarks.papers.data import prepare
from benchmarks.papers.profiles import Profile
from benchmarks.papers.tables import Table
from trainers.data import Images
from trainers.evaluation.extractors import extractor_of
from trainers.evaluation.spelling import RECOGNISER
from trainers.packs import MANIFEST

BACKBONES = {"dit": "DiT-XL/2, 256 × 256", "sd": "Stable Diffusion 1.5"}


@dataclass(frozen=True)
class Own:
    """What the user has on disk. models: folders or checkpoints by backbone; extractor: who looks."""

    data: Path | None = None
    models: dict[str, Path] | None = None
    extractor: str = "recogniser"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def made(out: Path, profile: Profile, name: str, wanted: list[Table], beside: set[str], own: Own) -> Bench:
    """What these tables need, as far as it is not there. beside: datasets that more than tables need.

    Raises ConfigInvalid and UnknownName, before anything is made where it is the extractor that is wrong.
    """
    looks = _looking(own.extractor)
    cells = [cell for table in wanted for row in table.rows for each in row.cells.values() for cell in each]
    archs = {cell.backbone for cell in cells} | ({"dit"} if beside else set())
    pretrained = set() if profile.local else archs - ({"dit"} if profile.shipped else set())
    names = {cell.dataset for cell in cells} | beside | ({profile.pretraining} if pretrained else set())
    backbones = _given(out, archs, profile, own) if profile.local else {}
    packs = prepare(out, sorted(names), own.data)
    for arch in sorted(archs - backbones.keys()):
        if arch in pretrained:
            backbones[arch] = _pretrained(out, arch, profile, packs[profile.pretraining])
        else:
            backbones[arch] = shipped_backbone()
    sampling = Sampling(profile.samples, profile.sampler_steps, profile.guidance, own.extractor)
    return Bench(out / name, backbones, packs, sampling, looks)


def _looking(extractor: str) -> str | None:
    """The digest of the weights that are meant; None for the recogniser: each dataset has its own."""
    if extractor == RECOGNISER:
        return None
    nothing = Images(torch.empty(0), torch.empty(0))
    return extractor_of(extractor, "", nothing, 0).digest


def there(out: Path, profile: Profile, name: str, own: Own) -> Bench:
    """What an earlier run prepared, and nothing more."""
    backbones = {}
    for arch in (*BACKBONES, "unet"):
        shipped = profile.shipped and arch == "dit"
        file = shipped_backbone() if shipped else backbone_file(out, arch, profile)
        if file.exists():
            backbones[arch] = file
    packs = {file.parent.name: file.parent for file in (out / "packs").glob(f"*/{MANIFEST}")}
    sampling = Sampling(profile.samples, profile.sampler_steps, profile.guidance, own.extractor)
    return Bench(out / name, backbones, packs, sampling, _looking(own.extractor), frozen=True)


def backbone_file(out: Path, arch: str, profile: Profile) -> Path:
    if profile.local:
        return out / "backbones" / f"{arch}.safetensors"
    size = f"{profile.size}x{profile.channels}-{profile.width}-{profile.pretraining_steps}"
    return out / "backbones" / f"{arch}-{profile.pretraining}-{size}.safetensors"


def shipped_backbone() -> Path:
    """The transformer that comes with Affinery."""
    return Path(str(files("affinery_app") / "assets" / "backbones" / "tiny-dit.safetensors"))


def _pretrained(out: Path, arch: str, profile: Profile, pack: Path) -> Path:
    return pretrain(
        arch,
        pack,
        backbone_file(out, arch, profile),
        size=profile.size,
        channels=profile.channels,
        width=profile.width,
        steps=profile.pretraining_steps,
        batch=profile.pretraining_batch,
        on_step=partial(_told, arch),
    )


def _told(arch: str, step: int, of: int, loss: float) -> None:
    say(f"pretraining {arch} {step}/{of}: loss {loss:.4f}")


def _given(out: Path, archs: set[str], profile: Profile, own: Own) -> dict[str, Path]:
    """The user's backbones as backbone files, converted once. Raises SystemExit for one that is not named."""
    found = {}
    for arch in sorted(archs):
        place = (own.models or {}).get(arch)
        if place is None:
            raise SystemExit(
                f"These tables need {BACKBONES[arch]}: say where it lies with --{arch} PATH "
                "(a folder that diffusers wrote, or a checkpoint of the official DiT)."
            )
        found[arch] = backbone_file(out, arch, profile)
        if not found[arch].exists():
            say(f"converting {place}")
            found[arch].parent.mkdir(parents=True, exist_ok=True)
            save_backbone(import_backbone(place, say), found[arch])
    return found

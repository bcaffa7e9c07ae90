"""Tasks beyond classes, through the queue and the certificate: conditions, captions, sizes, latents.

One of them is trained by Ray, whose workers train whatever a plan says; the plans of the others go the same
way through their JSON, and are trained in this process.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from affinery.backbones.contract import BackboneSpec
from affinery.backbones.files import save_backbone
from affinery.bundle import load_bundle
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.errors import ConfigInvalid
from affinery.tensor_files import read_header
from orchestration import additions, composing, exports, publishing, scheduling
from orchestration.chores import Evaluation
from orchestration.evaluations import measure
from orchestration.jobs import JobRecord
from orchestration.services import Services
from registry import adapters, evaluations, tasks
from tests import learning_world as world
from tests import tiny_unets
from tests.tiny_conditions import save_segmentation
from trainers.conditions import canny, condition_record
from trainers.replay import replay

RECIPE = {"steps": 8, "batch": 4, "warmup": 2}
CANNY = condition_record("canny")
DEPTH = condition_record("depth")


def shape_picture(seed: int, size: int = 16) -> tuple[Image.Image, Image.Image, str]:
    """A bright ellipse or box on a dark ground, its depth map, and what it is."""
    rng = np.random.default_rng(seed)
    picture, depth = Image.new("RGB", (size, size), (20, 20, 40)), Image.new("L", (size, size))
    low, high = rng.integers(1, size // 3, 2), rng.integers(size // 2, size - 1, 2)
    box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    name = "ellipse" if seed % 2 else "rectangle"
    getattr(ImageDraw.Draw(picture), name)(box, fill=tuple(int(n) for n in rng.integers(120, 256, 3)))
    getattr(ImageDraw.Draw(depth), name)(box, fill=200)
    return picture, depth, name


def told_folder(folder: Path, count: int = 16, size: int = 16, **without: bool) -> Path:
    """Pictures of shapes, with captions of the letters that the tiny vocabulary has, and depth maps."""
    (folder / "depth").mkdir(parents=True)
    lines = []
    for i in range(count):
        picture, depth, name = shape_picture(i, size)
        picture.save(folder / f"{i}.png")
        depth.save(folder / "depth" / f"{i}.png")
        line = {"file_name": f"{i}.png", "text": "abc ab" if name == "ellipse" else "d e f"}
        lines.append(json.dumps(line | {"conditioning_image": f"depth/{i}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def unet_file(path: Path, spec: BackboneSpec) -> Path:
    save_backbone(tiny_unets.built(spec), path)
    return path


def colour(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"in_channels": 3, "out_channels": 3, "sample_size": 16}


FACTS: dict[str, Any] = {
    "image_size": 16,
    "channels": 3,
    "class_names": (),
    "defaults": {"sampler": {"steps": 3, "guidance": 2.0}},
}
SPECS = {
    "pixels": tiny_unets.unet_spec(config=colour(tiny_unets.UNET), **FACTS),
    "captions": tiny_unets.text_spec(config=colour(tiny_unets.TEXT_UNET), **FACTS),
    "latents": tiny_unets.latent_spec(**FACTS),
}


@pytest.fixture
def space(tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """A workspace with three U-Nets, a folder of told pictures and one of classes; few samples are judged."""
    monkeypatch.setattr(publishing, "JUDGED_SAMPLES", 16)
    for name, spec in SPECS.items():
        additions.add_backbone(
            services.sessions, services.store, unet_file(tmp_path / f"{name}.safetensors", spec), name
        )
    world.add_dataset(services, told_folder(tmp_path / "shapes"), "shapes")
    world.add_dataset(services, world.image_folder(tmp_path / "letters", "a", "b"), "letters")
    return services


def learn(services: Services, names: list[str], sources: list[str], **given: Any) -> world.Heard:
    job = schedule(services, names, sources, **given)
    if services.ray_address is None:
        world.train_here(services, job.id)
    return published(services)


def published(services: Services) -> world.Heard:
    heard = world.Heard()
    assert world.worker_here(services, heard).drain() == 1, heard.failures
    return heard


def schedule(services: Services, names: list[str], sources: list[str], **given: Any) -> JobRecord:
    settings: dict[str, Any] = {"kind": "affiner", "config": {"rank": 2}, "recipe": RECIPE}
    return scheduling.schedule(services.sessions, names, sources, data=services.data, **settings | given)


def bundle(services: Services, folder: Path, *members: str) -> ComposedModel:
    record = composing.compose_tasks(services.sessions, "all", members)
    exports.write_composition(services.sessions, services.store, record, folder)
    return load_bundle(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_condition_a_map_and_a_class_task_are_learnt_proved_and_drawn_from_one_bundle(
    space: Services, local_ray: str, tmp_path: Path
) -> None:
    with_ray = replace(space, ray_address=local_ray)
    first = learn(
        with_ray, ["edges", "letters"], ["shapes", "letters"], backbone="pixels", conditions=[CANNY, None]
    )
    second = learn(space, ["depths"], ["shapes"], backbone="pixels", conditions=[DEPTH])
    assert first.published_refs == ["edges@1", "letters@1"]
    [certificate] = second.certificates
    assert certificate.level == "bit-exact"
    assert [entry["ref"] for entry in certificate.results["replay"]] == ["edges@1", "letters@1"]
    with space.sessions.read() as session:
        assert tasks.get(session, "edges").condition == CANNY
        assert tasks.get(session, "letters").condition is None
        assert adapters.get(session, "edges@1").provenance["condition"] == CANNY
    model = bundle(space, tmp_path / "bundle", "edges", "letters", "depths")
    assert model.task("edges").stem is not None
    assert model.task("edges").stem.gate != 0  # type: ignore[union-attr]
    picture, depth, _ = shape_picture(99)
    edges = torch.from_numpy(canny(np.asarray(picture).transpose(2, 0, 1))).float() / 127.5 - 1
    deep = torch.from_numpy(np.asarray(depth)[None].copy()).float() / 127.5 - 1
    draws = [
        Draw("edges", model.task("edges").row(0), 1, condition=edges),
        Draw("letters", model.task("letters").row("b"), 1),
        Draw("depths", model.task("depths").row(0), 1, condition=deep),
    ]
    assert sample(model, draws, SamplerSettings(3, 2.0)).shape == (3, 3, 16, 16)


def test_golden_images_of_a_condition_task_replay_from_their_file_alone(
    space: Services, tmp_path: Path
) -> None:
    learn(space, ["edges"], ["shapes"], backbone="captions", conditions=[CANNY])
    model = bundle(space, tmp_path / "bundle", "edges")
    outcome = replay(model, tmp_path / "bundle" / "golden" / "0.safetensors", "elsewhere")
    assert outcome.level in ("bit-exact", "tolerance")


def test_captions_are_learnt_on_a_backbone_that_takes_them(space: Services, tmp_path: Path) -> None:
    learn(space, ["shapes"], ["shapes"], backbone="captions")
    model = bundle(space, tmp_path / "bundle", "shapes")
    row = model.task("shapes").row(0)
    one, other = (
        sample(model, [Draw("shapes", row, 1, prompt)], SamplerSettings(3, 2.0)) for prompt in ("abc", "d e")
    )
    assert (one - other).abs().max() > 1e-4


def test_a_latent_backbone_encodes_once_and_draws_pictures(space: Services, tmp_path: Path) -> None:
    learn(space, ["shapes"], ["shapes"], backbone="latents", conditions=[DEPTH])
    kept = {path: path.stat().st_mtime_ns for path in space.cache.rglob("*.safetensors")}
    headers = [read_header(path) for path in kept if path.parent == space.cache]
    dtypes = sorted(entry.dtype for header in headers for entry in header.tensors.values() if entry.shape[1:])
    assert dtypes == ["F32", "U8", "U8"]  # latents; the images and their depth, decoded
    world.train_here(space, scheduling.schedule_again(space.sessions, ["shapes"], RECIPE).id)
    published(space)
    assert {path: path.stat().st_mtime_ns for path in space.cache.rglob("*.safetensors")} == kept
    model = bundle(space, tmp_path / "bundle", "shapes@2")
    depth = torch.zeros(1, 16, 16)
    draws = [Draw("shapes", model.task("shapes").row(0), 1, condition=depth)]
    assert sample(model, draws, SamplerSettings(3, 2.0)).shape == (1, 3, 16, 16)


def test_a_task_of_twice_the_size_is_learnt_on_a_transformer(space: Services, tmp_path: Path) -> None:
    world.add_dataset(space, world.image_folder(tmp_path / "digits", "0", "1"), "digits")
    small = learn(space, ["small"], ["digits"], backbone="tiny")
    large = learn(space, ["large"], ["digits"], backbone="tiny", image_size=32)
    assert [certificate.level for certificate in small.certificates + large.certificates] == ["bit-exact"] * 2
    model = bundle(space, tmp_path / "bundle", "small", "large")
    for name, side in (("small", 16), ("large", 32)):
        drawn = sample(model, [Draw(name, model.task(name).row("1"), 1)], SamplerSettings(3, 2.0))
        assert drawn.shape == (1, 1, side, side)


def test_what_cannot_be_is_refused_when_it_is_scheduled(space: Services) -> None:
    with pytest.raises(ConfigInvalid, match="17 is not a multiple of the patch side 4"):
        schedule(space, ["large"], ["letters"], backbone="tiny", image_size=17)
    with pytest.raises(ConfigInvalid, match="the side 33 is no multiple of 2"):
        schedule(space, ["large"], ["letters"], backbone="pixels", image_size=33)
    with pytest.raises(ConfigInvalid, match="of letters@1 have no map"):
        schedule(space, ["maps"], ["letters"], backbone="pixels", conditions=[DEPTH])
    with pytest.raises(ConfigInvalid, match="3 were named for 2 tasks"):
        schedule(space, ["a", "b"], ["letters"] * 2, backbone="pixels", conditions=[DEPTH, None, None])
    with space.sessions.read() as session:
        assert tasks.list_all(session) == []


def test_captions_that_are_not_used_and_those_that_are_missing_are_said(space: Services) -> None:
    notes: list[str] = []
    schedule(space, ["told"], ["shapes"], backbone="pixels", on_note=notes.append)
    schedule(space, ["untold"], ["letters"], backbone="captions", on_note=notes.append)
    assert notes == [
        "the captions of shapes@1 are not used: pixels@1 is told classes, not captions",
        "16 images of letters@1 are learnt with the empty caption",
    ]


def test_a_condition_that_a_model_draws_is_measured_after_the_training_and_whenever_it_is_asked(
    space: Services, tmp_path: Path
) -> None:
    record = condition_record("segmentation", model=save_segmentation(tmp_path / "model"))
    learn(space, ["painted"], ["shapes"], backbone="pixels", conditions=[record])
    with space.sessions.read() as session:
        [recorded] = evaluations.list_for(session, "painted")
    measured = measure(space, "painted", Evaluation(adapters=["painted"], samples=4))
    for results in (recorded.results, measured.judgement.results):
        assert 0 <= results["segmentation"]["miou"] <= 1
        assert "notes" not in results

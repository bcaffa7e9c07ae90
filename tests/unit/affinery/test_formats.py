"""What is exported computes what the composed model does, without Affinery where its format promises that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from affinery.adapters.files import Adapter
from affinery.backbones.contract import Backbone, Latent
from affinery.backbones.dit_conversion import with_profile
from affinery.backbones.files import load_backbone
from affinery.backbones.patch_transformer import PatchTransformer, position_table
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.errors import ConfigInvalid, ExportBroken, ExportDiffers, UnknownName
from affinery.formats import format_named, formats
from affinery.formats.contract import TOLERANCE, Shipment, checked
from affinery.formats.probe import probe
from affinery.formats.program import asked
from tests import tiny_models as tiny
from tests import tiny_unets

CONFIGS: dict[str, dict[str, Any]] = {"affiner": {"rank": 2}, "lora": {"rank": 2}, "difffit": {"blocks": 1}}


def model_of(*kinds: str, base: Backbone | None = None) -> ComposedModel:
    """A task of each kind, t0, t1, …, with two classes each and a gap of rows between them."""
    model = ComposedModel(base or tiny.backbone(), tiny.FINGERPRINT)
    for i, kind in enumerate(kinds):
        meta = tiny.meta(f"t{i}", (5 + 4 * i, 7 + 4 * i), kind=kind, config=CONFIGS.get(kind, {}))
        model.start(meta, torch.Generator().manual_seed(i))
        tensors = dict(model.adapter(meta.task).tensors)
        model.unload(meta.task)
        model.load(Adapter(meta, tiny.randomise(tensors, i)))
    return model


def latent_dit() -> PatchTransformer:
    """diffusers' own DiT on latents, with a VAE that diffusers' pipeline can say."""
    latent = Latent(channels=4, factor=2, scaling=0.5, vae=tiny_unets.VAE)
    config = {"width": 16, "depth": 2, "heads": 2, "patch": 2}
    spec = tiny.spec(arch="dit_diffusers", config=config, channels=3, latent=latent)
    backbone = tiny_unets.built(spec)
    assert isinstance(backbone, PatchTransformer)
    with torch.no_grad():
        backbone.positions.copy_(position_table(16, backbone.side))
    return backbone


def without_affinery(code: str, folder: Path) -> str:
    """Runs code in a fresh process that cannot import Affinery. → what it printed"""
    blocked = "import sys; sys.modules['affinery'] = None\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", blocked + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


RUN_GRAPH = """
import torch
from safetensors.torch import load_file, save_file
given = load_file("given.safetensors")
run = torch.export.load("model.pt2").module()
with torch.no_grad():
    save_file({"prediction": run(given["x"], given["t"], given["label"], given["task"])}, "got.safetensors")
"""


@pytest.mark.slow
def test_the_graph_mixes_tasks_of_several_kinds_in_a_process_without_affinery(tmp_path: Path) -> None:
    model = model_of("affiner", "full", "affiner")
    model.merge("sum", {"t0": 0.5, "t2": 0.5})
    form, shipment = format_named("torch-export"), Shipment(model, facts={"affinery.ref": "all@1"})
    form.write(shipment, tmp_path)
    assert form.compare(shipment, tmp_path) <= TOLERANCE
    said = json.loads((tmp_path / "model.json").read_text())
    assert said["tasks"] == {"": 0, "t0": 1, "t1": 2, "t2": 3, "sum": 4}
    assert said["labels"]["t1"] == {"t1 0": 6, "t1 1": 7}
    assert said["null_label"] == 3
    wanted = probe(model, [None, *model.slots], 11, seed=9)
    names = ("x", "t", "label", "task")
    save_file(dict(zip(names, asked(model, wanted), strict=True)), tmp_path / "given.safetensors")
    without_affinery(RUN_GRAPH, tmp_path)
    from safetensors.torch import load_file

    got = load_file(tmp_path / "got.safetensors")["prediction"]
    torch.testing.assert_close(got, wanted.answer(model), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_graph_is_compiled_and_answers_in_a_process_without_affinery(tmp_path: Path) -> None:
    """Which is how it is compared: the process that loads it cannot import Affinery."""
    config = {"width": 16, "depth": 1, "heads": 2, "patch": 4}
    model = model_of("lora", "bitfit", base=tiny.backbone(config=config))
    form, shipment = format_named("aotinductor"), Shipment(model)
    (note,) = form.write(shipment, tmp_path)
    said = json.loads((tmp_path / "model.json").read_text())
    assert said["compiled_for"]["capability"] in note
    assert said["tasks"] == {"": 0, "t0": 1, "t1": 2}
    assert form.compare(shipment, tmp_path) <= TOLERANCE
    (tmp_path / "model.pt2").write_bytes(b"no package")
    with pytest.raises(ExportBroken, match="aotinductor"):
        form.compare(shipment, tmp_path)


def test_without_a_compiler_the_compiled_graph_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    from torch._inductor import config

    with (
        config.patch("cpp.cxx", ("no-such-compiler",)),
        pytest.raises(ConfigInvalid, match=r"no C\+\+ compiler is here. Install g\+\+.*torch-export"),
    ):
        format_named("aotinductor").write(Shipment(model_of("lora")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_same_graph_runs_in_onnxruntime(tmp_path: Path) -> None:
    model = model_of("affiner", "lora")
    form = format_named("onnx")
    form.write(Shipment(model), tmp_path)
    assert form.compare(Shipment(model), tmp_path) <= TOLERANCE


@pytest.mark.parametrize("kind", ["lora", "bitfit", "full"])
def test_a_folded_task_is_a_backbone_whose_null_row_is_last(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    before = tiny.digests(model)
    form, shipment = format_named("safetensors"), Shipment(model, "t0")
    form.write(shipment, tmp_path)
    assert form.compare(shipment, tmp_path) <= TOLERANCE
    backbone = load_backbone(tmp_path / "model.safetensors")
    assert backbone.spec.class_names == ("coat", "bag", "boot", "t0 0", "t0 1")
    assert torch.equal(backbone.class_table[-1], model.backbone.class_table[-1])
    assert tiny.digests(model) == before


def test_what_does_not_fold_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = model_of("affiner", "lora")
    before = tiny.digests(model)
    with pytest.raises(ConfigInvalid, match=r"its ReLU branch is not linear.*torch-export"):
        format_named("safetensors").write(Shipment(model, "t0"), tmp_path)
    with pytest.raises(ConfigInvalid, match="name one of t0, t1"):
        format_named("dit").write(Shipment(model), tmp_path)
    with pytest.raises(UnknownName, match="t7"):
        format_named("dit").write(Shipment(model, "t7"), tmp_path)
    assert tiny.digests(model) == before


@pytest.mark.parametrize(
    ("base", "kind", "why"),
    [
        (tiny.backbone, "lora", "none that it could use. Name no task"),
        (lambda: with_profile(latent_dit(), "official"), "lora", "the profile 'official'.*Name no task"),
        (lambda: tiny_unets.built(tiny_unets.unet_spec()), "bitfit", "'t0' has 2 classes. Name no task"),
        (
            lambda: tiny_unets.built(tiny_unets.text_spec()),
            "bitfit",
            "2 classes. Take the format",
        ),
    ],
    ids=["pixels", "official", "classes", "captions"],
)
def test_what_no_plain_pipeline_draws_is_refused_with_the_format_that_does(
    base: Callable[[], Any], kind: str, why: str, tmp_path: Path
) -> None:
    model = model_of(kind, base=base())
    before = tiny.digests(model)
    with pytest.raises(ConfigInvalid, match=why):
        format_named("diffusers").write(Shipment(model, "t0"), tmp_path)
    assert tiny.digests(model) == before


def test_the_official_layout_is_read_back_from_both_files(tmp_path: Path) -> None:
    form, shipment = format_named("dit"), Shipment(model_of("lora"))
    form.write(shipment, tmp_path)
    assert form.compare(shipment, tmp_path) <= TOLERANCE
    state = torch.load(tmp_path / "model.pt", weights_only=True)["ema"]
    assert state["y_embedder.embedding_table.weight"].shape == (6, 16)


PLAIN = """
import torch
from diffusers import DiTPipeline
from safetensors.torch import save_file
pipeline = DiTPipeline.from_pretrained(".")
labels = pipeline.get_label_ids(["t0 1", "coat"])
generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
settings = {"guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "pt"}
images = pipeline(labels, generator=generators, **settings).images
save_file({"images": images.contiguous()}, "got.safetensors")
blocks = pipeline.transformer.transformer_blocks
tables = [block.norm1.emb.class_embedder.embedding_table.weight for block in blocks]
print(all(torch.equal(table, tables[0]) for table in tables), len(tables[0]))
"""


@pytest.mark.slow
def test_plain_diffusers_draws_a_folded_task_without_affinery(tmp_path: Path) -> None:
    """Under guidance: row 1000 is the null row. The table is in every block."""
    model = model_of("lora", base=latent_dit())
    form, shipment = format_named("diffusers"), Shipment(model, "t0")
    form.write(shipment, tmp_path)
    assert form.compare(shipment, tmp_path) <= TOLERANCE
    assert without_affinery(PLAIN, tmp_path).split() == ["True", "1003"]
    from safetensors.torch import load_file

    theirs = load_file(tmp_path / "got.safetensors")["images"] * 2 - 1
    draws = [Draw("t0", model.task("t0").row("t0 1"), 0), Draw("t0", 0, 1)]
    torch.testing.assert_close(theirs, sample(model, draws, SamplerSettings(3, 2.0)), rtol=1e-3, atol=1e-3)


PIXELS = """
import torch
from diffusers import DDIMPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
settings = {"num_inference_steps": 3, "output_type": "pt"}
pipeline = DDIMPipeline.from_pretrained("pixels")
found = {"pixels": pipeline(generator=torch.Generator().manual_seed(3), batch_size=1, **settings).images}
pipeline = StableDiffusionPipeline.from_pretrained("captions", text_encoder=None, tokenizer=None)
told = load_file("told.safetensors")["told"]
found["captions"] = pipeline(prompt_embeds=told, guidance_scale=1.0,
                             generator=torch.Generator().manual_seed(3), **settings).images
save_file({name: images.contiguous() for name, images in found.items()}, "got.safetensors")
"""


@pytest.mark.slow
def test_plain_diffusers_draws_a_class_folded_into_a_unet_without_affinery(
    tmp_path: Path,
) -> None:
    """On pixels, and on latents with captions. No pipeline of these passes a label: it is in the weights."""
    from safetensors.torch import load_file

    stable = {"clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading"}
    latent = Latent(channels=4, factor=2, scaling=0.5, vae=tiny_unets.VAE)
    network = tiny_unets.TEXT_UNET | {"in_channels": 4, "out_channels": 4}
    told = tiny_unets.text_spec(config=network, image_size=16, channels=3, latent=latent, schedule=stable)
    bases = {"pixels": tiny_unets.unet_spec(), "captions": told}
    models = {name: one_class(tiny_unets.built(spec)) for name, spec in bases.items()}
    for name, model in models.items():
        form, shipment = format_named("diffusers"), Shipment(model, "only")
        (tmp_path / name).mkdir()
        form.write(shipment, tmp_path / name)
        assert form.compare(shipment, tmp_path / name) <= TOLERANCE
    prompt = models["captions"].backbone.encode_text(["abc ab"])
    save_file({"told": prompt.contiguous()}, tmp_path / "told.safetensors")
    without_affinery(PIXELS, tmp_path)
    got = load_file(tmp_path / "got.safetensors")
    for name, model in models.items():
        draw = Draw("only", model.task("only").row(0), 3, "abc ab" if name == "captions" else "")
        ours = sample(model, [draw], SamplerSettings(3, 1.0))
        torch.testing.assert_close(got[name] * 2 - 1, ours, rtol=1e-3, atol=1e-3)


def one_class(base: Backbone) -> ComposedModel:
    model = ComposedModel(base, tiny.FINGERPRINT)
    meta = tiny.meta("only", (9, 10), kind="bitfit", config={})
    model.start(meta, torch.Generator().manual_seed(0))
    tensors = dict(model.adapter("only").tensors)
    model.unload("only")
    model.load(Adapter(meta, tiny.randomise(tensors, 0)))
    return model


ROUTED = """
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
pipeline = DiffusionPipeline.from_pretrained(".", custom_pipeline=".", trust_remote_code=True)
images = pipeline(["t0", "", "t1"], ["t0 1", "bag", "t1 0"], seeds=[4, 5, 6], num_inference_steps=2,
                  guidance_scale=2.0, output_type="pt").images
save_file({"images": images.contiguous()}, "got.safetensors")
"""


def pixel_unet() -> Backbone:
    return tiny_unets.built(tiny_unets.unet_spec())


@pytest.mark.slow
@pytest.mark.parametrize("base", [latent_dit, pixel_unet])
def test_a_pipeline_file_draws_mixed_tasks_without_affinery(
    base: Callable[[], Backbone], tmp_path: Path
) -> None:
    model = model_of("affiner", "bitfit", base=base())
    form, shipment = format_named("diffusers"), Shipment(model)
    form.write(shipment, tmp_path)
    assert form.compare(shipment, tmp_path) <= TOLERANCE
    without_affinery(ROUTED, tmp_path)
    from safetensors.torch import load_file

    theirs = load_file(tmp_path / "got.safetensors")["images"] * 2 - 1
    draws = [Draw("t0", model.task("t0").row(1), 4), Draw(None, 1, 5), Draw("t1", model.task("t1").row(0), 6)]
    torch.testing.assert_close(theirs, sample(model, draws, SamplerSettings(2, 2.0)), rtol=1e-3, atol=1e-3)


def test_captions_and_conditions_are_refused_where_a_graph_cannot_say_them(tmp_path: Path) -> None:
    model = ComposedModel(tiny_unets.built(tiny_unets.text_spec()), tiny.FINGERPRINT)
    with pytest.raises(ConfigInvalid, match="takes no captions"):
        format_named("torch-export").write(Shipment(model), tmp_path)


def test_an_export_that_computes_something_else_is_an_error() -> None:
    assert checked(TOLERANCE, "onnx") == TOLERANCE
    for difference in (2 * TOLERANCE, float("inf"), float("nan")):
        with pytest.raises(ExportDiffers, match="onnx"):
            checked(difference, "onnx")


def test_formats_are_found_by_their_files() -> None:
    assert formats() == ["aotinductor", "diffusers", "dit", "onnx", "safetensors", "torch-export"]
    with pytest.raises(UnknownName, match="Did you mean 'torch-export'"):
        format_named("torch_export")

"""A folder that diffusers saved becomes a backbone that draws what the pipeline draws."""

from __future__ import annotations

import json
import random
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from affinery.backbones.contract import Backbone
from affinery.backbones.diffusers_folder import read_folder
from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from affinery.backbones.unet_condition import STABLE_DIFFUSION_SCHEDULE
from affinery.diffusion.schedule import scheduler
from affinery.errors import BackboneFileInvalid
from tests import tiny_models as tiny
from tests.tiny_unets import CLIP, MERGES, TEXT_UNET, UNET, VAE, VOCAB, randomised

STABLE = {name: value for name, value in STABLE_DIFFUSION_SCHEDULE.items() if name != "timestep_spacing"}
ONE_LAYER_DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 2}


def class_model(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return randomised(UNet2DModel(**UNET | settings)).eval().requires_grad_(False)


def class_folder(folder: Path, **settings: Any) -> Path:
    DDPMPipeline(class_model(**settings), DDPMScheduler()).save_pretrained(folder)
    return folder


def text_pipeline() -> Any:
    torch.manual_seed(0)
    merges: Any = [tuple(line.split()) for line in MERGES.decode().splitlines()]
    unet = UNet2DConditionModel(**TEXT_UNET | {"in_channels": 4, "out_channels": 4})
    encoder = CLIPTextModel(CLIPTextConfig(**CLIP, bos_token_id=18, eos_token_id=19))
    vae = AutoencoderKL(**VAE)
    for part in (vae, encoder, unet):
        randomised(part).eval().requires_grad_(False)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=CLIPTokenizer(vocab=json.loads(VOCAB), merges=merges, model_max_length=7),
        unet=unet,
        scheduler=DDIMScheduler(**STABLE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    text_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def text_folder(pipeline_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(pipeline_folder, tmp_path / "text")
    return tmp_path / "text"


def edit(file: Path, **changes: Any) -> None:
    """A JSON file with other entries; None takes one away."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def refusal(folder: Path) -> str:
    with pytest.raises(BackboneFileInvalid) as raised:
        read_folder(folder)
    return str(raised.value)


def drawn(backbone: Backbone, x: Tensor, captions: list[str], guidance: float, steps: int) -> Tensor:
    """DDIM with guidance by a caption, as a composed model does it."""
    solver = scheduler(backbone.spec)
    solver.set_timesteps(steps)
    null = torch.full((len(x),), backbone.spec.null_index)
    text, empty = backbone.encode_text(captions), backbone.encode_text([""] * len(x))
    for t in solver.timesteps:
        conditional, free = (backbone(x, t.repeat(len(x)), null, text=told) for told in (text, empty))
        x = solver.step(free + guidance * (conditional - free), t, x).prev_sample
    return backbone.decode(x)


def test_a_text_pipeline_becomes_a_backbone_that_draws_what_it_draws(text_folder: Path) -> None:
    backbone = read_folder(text_folder)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    captions = ["a cab", "abc"]
    pipeline = text_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        captions,
        latents=x.clone(),
        guidance_scale=3.0,
        num_inference_steps=4,
        output_type="pt",
        height=16,
        width=16,
    ).images
    found = drawn(backbone, x, captions, guidance=3.0, steps=4)
    torch.testing.assert_close(found / 2 + 0.5, expected, rtol=1e-5, atol=1e-5)


def test_what_a_pipeline_says_stands_in_the_spec(text_folder: Path) -> None:
    notes: list[str] = []
    backbone = read_folder(text_folder, notes.append)
    spec = backbone.spec
    assert (spec.arch, spec.image_size, spec.channels, spec.class_names) == ("unet_condition", 16, 3, ())
    assert spec.latent is not None
    assert (spec.latent.channels, spec.latent.factor, spec.latent.scaling) == (4, 2, 0.18215)
    assert spec.text is not None
    assert (spec.text.length, spec.text.width) == (7, 12)
    assert {name: spec.schedule[name] for name in STABLE} == STABLE
    assert spec.prediction == "epsilon"
    assert notes == []
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_imported_and_saved_a_pipeline_is_one_file(text_folder: Path, tmp_path: Path) -> None:
    backbone = read_folder(text_folder)
    save_backbone(backbone, tmp_path / "one.safetensors")
    loaded = load_backbone(tmp_path / "one.safetensors")
    assert tiny.same_weights(loaded, backbone)
    assert inspect_backbone(tmp_path / "one.safetensors").spec == backbone.spec


def test_a_tokenizer_in_one_file_or_in_two_is_the_same(text_folder: Path) -> None:
    whole = read_folder(text_folder)
    tokens = text_folder / "tokenizer"
    for file in tokens.glob("*"):
        if file.name not in ("tokenizer_config.json", "special_tokens_map.json"):
            file.unlink()
    (tokens / "vocab.json").write_bytes(VOCAB)
    (tokens / "merges.txt").write_text("#version: 0.2\n" + MERGES.decode() + "\n")
    parts = read_folder(text_folder)
    captions = ["a cab", "abc bad"]
    assert torch.equal(parts.encode_text(captions), whole.encode_text(captions))
    assert parts.spec == whole.spec


def test_the_prefix_of_older_text_encoders_is_understood(text_folder: Path) -> None:
    whole = read_folder(text_folder)
    file = text_folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    prefix = "" if any(name.startswith("text_model.") for name in state) else "text_model."
    old = {prefix + name: tensor for name, tensor in state.items()}
    save_file(old | {"text_model.embeddings.position_ids": torch.arange(7)[None]}, file)
    assert tiny.same_weights(read_folder(text_folder), whole)


def test_a_pixel_pipeline_without_classes_keeps_its_predictions(tmp_path: Path) -> None:
    backbone = read_folder(class_folder(tmp_path / "ddpm"))
    x, t = tiny.inputs(3)
    assert backbone.spec.class_names == ()
    assert backbone.spec.latent is None
    torch.testing.assert_close(
        backbone(x, t, torch.zeros(3, dtype=torch.long)), class_model()(x, t).sample, rtol=0, atol=1e-6
    )


def test_the_last_row_of_a_table_is_the_null_row_where_the_other_classes_have_names(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "named", num_class_embeds=3)
    edit(folder / "model_index.json", id2label={"0": "cat", "1": "dog"})
    backbone = read_folder(folder)
    model = class_model(num_class_embeds=3)
    assert backbone.spec.class_names == ("cat", "dog")
    assert torch.equal(backbone.class_table, model.class_embedding.weight)
    edit(folder / "model_index.json", id2label={"0": "cat"})
    assert "names 1 classes, but the table has 3 rows" in refusal(folder)
    edit(folder / "model_index.json", id2label={"1": "cat", "2": "dog"})
    assert "does not name the classes 0, 1, 2" in refusal(folder)


def test_a_table_without_a_null_row_gets_the_mean_and_a_note_about_it(tmp_path: Path) -> None:
    notes: list[str] = []
    backbone = read_folder(class_folder(tmp_path / "classes", num_class_embeds=3), notes.append)
    table = class_model(num_class_embeds=3).class_embedding.weight
    assert backbone.spec.class_names == ("class 0", "class 1", "class 2")
    assert torch.equal(backbone.class_table, torch.cat([table, table.mean(0, keepdim=True)]))
    assert any("no null row" in note for note in notes)
    x, t = tiny.inputs(3)
    expected = class_model(num_class_embeds=3)(x, t, class_labels=torch.arange(3)).sample
    torch.testing.assert_close(backbone(x, t, torch.arange(3)), expected, rtol=0, atol=1e-6)


def test_the_folder_of_a_model_alone_is_read_with_notes_of_what_it_lacks(tmp_path: Path) -> None:
    notes: list[str] = []
    class_model().save_pretrained(tmp_path / "unet")
    backbone = read_folder(tmp_path / "unet", notes.append)
    assert backbone.spec.schedule == {}
    assert len(notes) == 1
    assert "no scheduler" in notes[0]


def test_a_text_unet_alone_is_taken_to_denoise_stable_diffusions_latents(pipeline_folder: Path) -> None:
    notes: list[str] = []
    spec = read_folder(pipeline_folder / "unet", notes.append).spec
    assert spec.latent is not None
    assert (spec.latent.factor, spec.latent.vae, spec.image_size) == (8, None, 64)
    assert spec.text is not None
    assert spec.text.encoder is None
    assert len(notes) == 3


def test_the_first_pipelines_kept_their_parts_beside_their_index(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "ddpm")
    expected = read_folder(folder)
    for file in (*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()):
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    found = read_folder(folder)
    assert found.spec == expected.spec
    assert tiny.same_weights(found, expected)


def test_sharded_weights_are_put_together(tmp_path: Path) -> None:
    class_model().save_pretrained(tmp_path / "whole")
    class_model().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*-of-*.safetensors"))) > 1
    assert tiny.same_weights(read_folder(tmp_path / "shards"), read_folder(tmp_path / "whole"))
    next((tmp_path / "shards").glob("*-of-*.safetensors")).unlink()
    assert "is missing; download the folder anew" in refusal(tmp_path / "shards")
    index = tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json"
    edit(index, weight_map={"conv_in.weight": "../whole/diffusion_pytorch_model.safetensors"})
    assert "no safetensors file beside it" in refusal(tmp_path / "shards")


def test_half_precision_is_converted_with_a_note_and_used_only_where_there_is_no_full_one(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    class_model().save_pretrained(tmp_path / "unet")
    class_model(seed=1).half().save_pretrained(tmp_path / "unet", variant="fp16")
    assert torch.equal(
        read_folder(tmp_path / "unet").state_dict()["conv_in.weight"], class_model().conv_in.weight
    )
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    backbone = read_folder(tmp_path / "unet", notes.append)
    assert {tensor.dtype for tensor in backbone.state_dict().values()} == {torch.float32}
    assert torch.equal(
        backbone.state_dict()["conv_in.weight"], class_model(seed=1).conv_in.weight.half().float()
    )
    assert any("float16" in note for note in notes)


def test_attention_names_of_the_first_checkpoints_are_understood(tmp_path: Path) -> None:
    class_model().save_pretrained(tmp_path / "unet")
    expected = read_folder(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in load_file(file).items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        state[name] = tensor
    assert any(".proj_attn." in name for name in state)
    save_file(state, file)
    assert tiny.same_weights(read_folder(tmp_path / "unet"), expected)


def test_a_solver_keeps_its_schedule_and_its_own_defaults(text_folder: Path) -> None:
    PNDMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(
        text_folder / "scheduler"
    )
    spec = read_folder(text_folder).spec
    assert spec.prediction == "v_prediction"
    assert (spec.schedule["beta_schedule"], spec.schedule["clip_sample"]) == ("scaled_linear", False)
    assert spec.schedule["set_alpha_to_one"] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "'FlowMatchEulerDiscreteScheduler' is not supported",
        ),
        ({"_class_name": "os.system"}, "'os.system' is not supported"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas = [0.1, 0.2] is not supported"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid' is not supported; supported: linear"),
        ({"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction' is not supported"),
        ({"thresholding": True}, "thresholding = True is not supported"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps = 'many' is not a whole number"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(
    changes: dict[str, Any], said: str, text_folder: Path
) -> None:
    edit(text_folder / "scheduler" / "scheduler_config.json", **changes)
    assert said in refusal(text_folder)


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    class_model().save_pretrained(tmp_path / "unet")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "unet" / "diffusion_pytorch_model.bin"
    )
    said = refusal(tmp_path / "unet")
    assert "is a pickle, which can run code" in said
    assert "safe_serialization=True" in said


def test_folders_that_hold_no_model_are_told_apart(tmp_path: Path, text_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "neither a model_index.json" in refusal(tmp_path / "empty")
    assert "it holds a AutoencoderKL; supported are: UNet2DModel" in refusal(text_folder / "vae")
    shutil.rmtree(text_folder / "vae")
    assert "names vae/, which is missing" in refusal(text_folder)


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "a setting of a larger kind": (
        "unet/config.json",
        {"addition_embed_type": "text_time"},
        "addition_embed_type = 'text_time' is not supported",
    ),
    "no size": ("unet/config.json", {"sample_size": None}, "state it in config.json"),
    "an oblong": ("unet/config.json", {"sample_size": [8, 16]}, "no side of a square"),
    "another width": (
        "unet/config.json",
        {"block_out_channels": [8, 32]},
        "weights are not those of its config",
    ),
    "a width of text": (
        "unet/config.json",
        {"block_out_channels": ["8", 16]},
        "block_out_channels = ['8', 16] cannot be",
    ),
    "other captions": ("unet/config.json", {"cross_attention_dim": 16}, "the network takes 16"),
    "another VAE": ("vae/config.json", {"_class_name": "VQModel"}, "it is a VQModel; AutoencoderKL"),
    "a scale of text": ("vae/config.json", {"scaling_factor": "x"}, "not as diffusers writes them"),
    "a normalised VAE": ("vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean is not supported"),
    "another encoder": (
        "text_encoder/config.json",
        {"architectures": ["T5EncoderModel"]},
        "['T5EncoderModel'] is none; CLIPTextModel is",
    ),
    "a second encoder": (
        "model_index.json",
        {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
        "a part that is not supported: text_encoder_2",
    ),
    "no denoiser": ("model_index.json", {"unet": [None, None]}, "names neither unet nor transformer"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_cannot_be_used_says_why(what: str, text_folder: Path) -> None:
    file, changes, said = BROKEN[what]
    edit(text_folder / file, **changes)
    assert said in refusal(text_folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1, "a": 2}'])
def test_json_that_is_none_is_refused(content: bytes, text_folder: Path) -> None:
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        before = (text_folder / name).read_bytes()
        (text_folder / name).write_bytes(content)
        assert str(text_folder / name) in refusal(text_folder)
        (text_folder / name).write_bytes(before)


def test_weights_that_are_cut_off_or_not_finite_are_refused(text_folder: Path) -> None:
    file = text_folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert "it is cut off" in refusal(text_folder)
    file.write_bytes(content)
    state = load_file(file)
    state["conv_in.bias"][0] = float("nan")
    save_file(state, file)
    assert "'conv_in.bias' holds values that are not finite" in refusal(text_folder)


def dit_pipeline() -> Any:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        **ONE_LAYER_DIT, in_channels=4, out_channels=8, sample_size=8, num_embeds_ada_norm=2
    )
    parts = [randomised(part).eval().requires_grad_(False) for part in (transformer, AutoencoderKL(**VAE))]
    for name, parameter in transformer.named_parameters():
        if ".norm1.emb." in name:  # every block has a copy of the first one's
            parameter.copy_(transformer.get_parameter(re.sub(r"blocks\.\d+\.", "blocks.0.", name)))
    return DiTPipeline(*parts, DDIMScheduler(clip_sample=False))


def test_a_transformer_pipeline_becomes_a_latent_backbone_with_named_classes(tmp_path: Path) -> None:
    pipeline = dit_pipeline()
    pipeline.save_pretrained(tmp_path / "dit")
    edit(tmp_path / "dit" / "model_index.json", id2label={"0": "cat", "1": "dog"})
    backbone = read_folder(tmp_path / "dit")
    assert backbone.spec.arch == "dit_diffusers"
    assert backbone.spec.class_names == ("cat", "dog")
    assert backbone.spec.image_size == 16
    assert backbone.spec.schedule["clip_sample"] is False
    x, t = tiny.inputs(3, channels=4)
    labels = torch.tensor([0, 1, 2])
    expected = pipeline.transformer(x, timestep=t, class_labels=labels).sample
    torch.testing.assert_close(backbone(x, t, labels), expected, rtol=1e-5, atol=1e-5)
    drawn = pipeline.vae.decode(x / 0.18215).sample.clamp(-1, 1)
    torch.testing.assert_close(backbone.decode(x), drawn)


ODD: list[Any] = [[], "x", -1, 0, {}, 10**12, True, [1] * 4, 3.5, ["x", "y"], 7]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "."])
def test_a_wrong_value_anywhere_is_harmless_or_refused_as_such(part: str, text_folder: Path) -> None:
    names = {
        "tokenizer": "tokenizer_config.json",
        "scheduler": "scheduler_config.json",
        ".": "model_index.json",
    }
    file = text_folder / part / names.get(part, "config.json")
    before = json.loads(file.read_text())
    chance = random.Random(0)
    for _ in range(25):
        change = {chance.choice(list(before)): chance.choice(ODD)}
        file.write_text(json.dumps(before | change))
        with suppress(BackboneFileInvalid):
            read_folder(text_folder)

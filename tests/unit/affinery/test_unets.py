"""The U-Nets predict what diffusers' own models predict; classes and captions only add to that."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, BackboneSpec, Site, Text, on_meta, parameter_count
from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from affinery.backbones.unet_condition import named_spec
from affinery.errors import BackboneFileInvalid, ConfigInvalid, UnknownName
from tests import tiny_models as tiny
from tests import tiny_unets
from tests.tiny_unets import TEXT_UNET, UNET, built, text_spec, unet_spec

CONFIGS: dict[str, dict[str, Any]] = {
    "attention in one stage": {},
    "residual samplers": {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
    "no middle, centred input": {"mid_block_type": None, "center_input_sample": True},
    "as Ho et al. trained it": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
    "no attention in the middle": {"add_attention": False, "layers_per_block": 2},
    "a learned variance": {"out_channels": 2},
}
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "as Stable Diffusion 1": {},
    "as Stable Diffusion 2": {"use_linear_projection": True, "attention_head_dim": [2, 4]},
    "deeper and uneven": {"transformer_layers_per_block": [1, 2], "layers_per_block": [2, 1]},
    "captions alone in the first attention": {"only_cross_attention": True},
}


def diffusers_model(backbone: Backbone, network: Any, **settings: Any) -> Any:
    """diffusers' own model with the backbone's very tensors, but for the class table."""
    model = network(**backbone.spec.config, **settings).eval()
    own = (*model.state_dict(),)
    model.load_state_dict({name: backbone.state_dict()[name] for name in own}, strict=True, assign=True)
    return model.requires_grad_(False)  # torch's matmul takes another way where a weight wants a gradient


def batch(side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    x, t = tiny.inputs(3, size=side)
    return x, t, torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("what", CONFIGS)
@torch.no_grad()
def test_a_class_unet_predicts_what_diffusers_does_given_the_same_class_embeddings(what: str) -> None:
    backbone = built(unet_spec(config=UNET | CONFIGS[what]))
    model = diffusers_model(backbone, UNet2DModel, class_embed_type="identity")
    x, t, _ = batch()
    labels = torch.tensor([0, 2, 3])
    expected = model(x, t, class_labels=backbone.class_table[labels]).sample
    assert torch.equal(backbone(x, t, labels), expected)


def test_a_unet_that_was_trained_with_classes_keeps_its_predictions() -> None:
    backbone = built(unet_spec())
    model = diffusers_model(backbone, UNet2DModel, num_class_embeds=4)
    x, t, _ = batch()
    labels = torch.tensor([0, 2, 3])
    assert torch.equal(backbone(x, t, labels), model(x, t, class_labels=labels).sample)


def test_a_unet_without_classes_keeps_its_predictions_to_the_bit() -> None:
    fresh = architecture("unet").build(unet_spec(class_names=()))
    assert torch.equal(fresh.class_table, torch.zeros(1, 32))
    backbone = built(unet_spec(class_names=()))
    backbone.class_table.zero_()
    model = diffusers_model(backbone, UNet2DModel)
    x, t, _ = batch()
    assert torch.equal(backbone(x, t, torch.zeros(3, dtype=torch.long)), model(x, t).sample)


@pytest.mark.parametrize("side", [8, 7], ids=["a power of two", "an uneven side"])
@pytest.mark.parametrize("what", TEXT_CONFIGS)
@torch.no_grad()
def test_a_text_unet_predicts_what_diffusers_does(what: str, side: int) -> None:
    backbone = built(text_spec(config=TEXT_UNET | TEXT_CONFIGS[what]))
    model = diffusers_model(backbone, UNet2DConditionModel, class_embed_type="identity")
    x, t, text = batch(side)
    classes = backbone.class_table[torch.tensor([0, 2, 3])]
    expected = model(x, t, encoder_hidden_states=text, class_labels=classes).sample
    assert torch.equal(backbone.denoise(x, t, classes, text=text), expected)


def test_a_text_unet_without_classes_keeps_its_predictions_to_the_bit() -> None:
    backbone = built(text_spec(class_names=()))
    backbone.class_table.zero_()
    model = diffusers_model(backbone, UNet2DConditionModel)
    x, t, text = batch()
    expected = model(x, t, encoder_hidden_states=text).sample
    assert torch.equal(backbone(x, t, torch.zeros(3, dtype=torch.long), text=text), expected)


def test_without_a_caption_a_text_unet_is_told_the_empty_one() -> None:
    backbone = built(text_spec())
    x, t, _ = batch()
    labels = torch.tensor([0, 1, 2])
    empty = backbone.encode_text(["", "", ""])
    torch.testing.assert_close(backbone(x, t, labels), backbone(x, t, labels, text=empty))
    assert not torch.allclose(backbone(x, t, labels), backbone(x, t, labels, text=empty + 1))


def test_without_a_text_encoder_no_caption_is_zeros() -> None:
    backbone = built(text_spec(text=Text(7, 12)))
    x, t, _ = batch()
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(backbone(x, t, labels), backbone(x, t, labels, text=torch.zeros(3, 7, 12)))
    with pytest.raises(ConfigInvalid, match="has no text encoder"):
        backbone.encode_text(["a cab"])


def test_a_side_that_the_stages_cannot_halve_is_refused_where_diffusers_would_fail_in_the_middle() -> None:
    backbone = built(unet_spec())
    x, t, _ = batch(7)
    with pytest.raises(ConfigInvalid, match="7 is no multiple of 2"):
        backbone(x, t, torch.tensor([0, 1, 2]))


def roles(backbone: Backbone, prefix: str) -> dict[str, str]:
    sites = backbone.sites().items()
    return {name.removeprefix(prefix): site.role for name, site in sites if name.startswith(prefix)}


def test_the_roles_of_a_class_unets_layers() -> None:
    backbone = built(unet_spec())
    assert roles(backbone, "down_blocks.1.") == {
        "resnets.0": "residual",
        "resnets.0.norm1": "norm",
        "resnets.0.conv1": "conv",
        "resnets.0.time_emb_proj": "modulation",
        "resnets.0.norm2": "norm",
        "resnets.0.conv2": "conv",
        "resnets.0.conv_shortcut": "conv",
        "attentions.0": "residual",
        "attentions.0.group_norm": "norm",
        "attentions.0.to_q": "query",
        "attentions.0.to_k": "key",
        "attentions.0.to_v": "value",
        "attentions.0.to_out.0": "proj",
    }
    sites = backbone.sites()
    assert [sites[name].role for name in ("conv_in", "time_embedding.linear_1")] == ["stem", "time"]
    assert [sites[name].role for name in ("conv_norm_out", "conv_out")] == ["head", "head"]


def test_the_roles_of_a_transformer_in_a_text_unet() -> None:
    attention = {"": "attention", ".to_q": "query", ".to_k": "key", ".to_v": "value", ".to_out.0": "proj"}
    found = roles(built(text_spec()), "down_blocks.0.attentions.0.")
    assert found == {
        "norm": "norm",
        "proj_in": "conv",
        "transformer_blocks.0": "block",
        "transformer_blocks.0.norm1": "norm",
        **{f"transformer_blocks.0.attn1{name}": role for name, role in attention.items()},
        "transformer_blocks.0.norm2": "norm",
        **{f"transformer_blocks.0.attn2{name}": role for name, role in attention.items()},
        "transformer_blocks.0.norm3": "norm",
        "transformer_blocks.0.ff": "mlp",
        "transformer_blocks.0.ff.net.0.proj": "fc1",
        "transformer_blocks.0.ff.net.2": "fc2",
        "proj_out": "conv",
    }


def test_stages_are_numbered_down_middle_up() -> None:
    sites = built(unet_spec()).sites()

    def stage(prefix: str) -> set[int | None]:
        return {site.block for name, site in sites.items() if name.startswith(prefix)}

    assert [
        stage(name) for name in ("conv_in", "down_blocks.1.", "mid_block.", "up_blocks.0.", "up_blocks.1.")
    ] == [
        {None},
        {1},
        {2},
        {3},
        {4},
    ]


def affiner_parameters(site: Site, rank: int) -> int:
    """a, b, s and the two low-rank matrices of a linear layer or a convolution (DiffScaler, eq. 5)."""
    layer = site.module
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return 0
    outputs, inputs = layer.weight.shape[:2]
    return 2 * outputs + 1 + rank * (inputs + outputs)


def test_affiners_on_the_down_blocks_of_stable_diffusion_have_6_76_million_parameters() -> None:
    skeleton = on_meta(named_spec("sd15-unet"), architecture("unet_condition"))
    assert parameter_count(skeleton) == 859_520_964 + 1280  # the published U-Net and our null row
    down = [site for name, site in skeleton.sites().items() if name.startswith("down_blocks.")]
    assert sum(affiner_parameters(site, rank=32) for site in down) == 6_762_213
    with pytest.raises(UnknownName, match="sd15-unet"):
        named_spec("sd15")


HOSTILE: dict[str, BackboneSpec] = {
    "an unknown setting": unet_spec(config=UNET | {"speed": 1}),
    "no channels": unet_spec(config={**UNET, "in_channels": 3}),
    "a billion layers": unet_spec(config=UNET | {"layers_per_block": 10**9}),
    "many layers": unet_spec(config=UNET | {"layers_per_block": 100}),
    "a list in a list in a list": unet_spec(config=UNET | {"block_out_channels": [[[8]], [16]]}),
    "a huge width": unet_spec(config=UNET | {"block_out_channels": [8, 2**40]}),
    "a width of zero": unet_spec(config=UNET | {"block_out_channels": [0, 0]}),
    "a thousand stages": unet_spec(config=UNET | {"block_out_channels": [8] * 1000}),
    "stages that do not match": unet_spec(config=UNET | {"block_out_channels": [8]}),
    "blocks of another diffusion": unet_spec(
        config=UNET | {"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"]}
    ),
    "blocks in an object": unet_spec(config=UNET | {"down_block_types": {"a": 1}}),
    "Fourier time": unet_spec(config=UNET | {"time_embedding_type": "fourier"}),
    "a table of its own": unet_spec(config=UNET | {"num_class_embeds": 3}),
    "a size that its stages cannot halve": unet_spec(image_size=9),
    "groups that do not divide": unet_spec(config=UNET | {"norm_num_groups": 7}),
    "no captions": text_spec(text=None),
    "captions of another width": text_spec(text=Text(7, 16)),
    "a deep transformer": text_spec(config=TEXT_UNET | {"transformer_layers_per_block": 10_000}),
    "Stable Diffusion XL": text_spec(config=TEXT_UNET | {"addition_embed_type": "text_time"}),
    "an encoder of nothing": text_spec(text=Text(7, 12, {})),
    "an encoder of another width": text_spec(
        text=Text(7, 12, tiny_unets.ENCODER | {"clip": tiny_unets.CLIP | {"hidden_size": 14}})
    ),
    "an encoder that is too short": text_spec(text=Text(9, 12, tiny_unets.ENCODER)),
    "a deep encoder": text_spec(
        text=Text(7, 12, tiny_unets.ENCODER | {"clip": tiny_unets.CLIP | {"num_hidden_layers": 10**6}})
    ),
    "a vocabulary without end": text_spec(text=Text(7, 12, tiny_unets.ENCODER | {"vocab_bytes": 2**50})),
    "a pad that is a list": text_spec(text=Text(7, 12, tiny_unets.ENCODER | {"pad": ["a"]})),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_spec_that_cannot_be_is_refused_quickly_and_clearly(what: str, tmp_path: Any) -> None:
    path = tmp_path / "backbone.safetensors"
    honest = built(unet_spec())
    honest.spec = HOSTILE[what]
    save_backbone(honest, path)
    began = time.monotonic()
    with pytest.raises(BackboneFileInvalid, match="is not a usable backbone") as raised:
        inspect_backbone(path)
    assert time.monotonic() - began < 10
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    "vocab",
    [
        b"{",
        b"[]",
        b'{"a": 10000}',
        b'{"a": "b"}',
        b"\xff",
        tiny_unets.VOCAB.replace(b"<|endoftext|>", b"end"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused_when_the_file_is_checked(vocab: bytes, tmp_path: Any) -> None:
    backbone = built(
        text_spec(text=Text(7, 12, tiny_unets.ENCODER | {"vocab_bytes": len(vocab)})), vocab=vocab
    )
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    with pytest.raises(BackboneFileInvalid, match="its vocabulary is none"):
        load_backbone(tmp_path / "backbone.safetensors")


def test_merges_of_unknown_pieces_are_refused(tmp_path: Any) -> None:
    merges = b"a z"
    encoder = tiny_unets.ENCODER | {"merges_bytes": len(merges)}
    backbone = built(text_spec(text=Text(7, 12, encoder)), merges=merges)
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    with pytest.raises(BackboneFileInvalid, match="'a z' is no pair"):
        inspect_backbone(tmp_path / "backbone.safetensors")


def test_a_vocabulary_of_floats_and_weights_of_bytes_are_refused(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    from affinery.backbones.files import SPEC_KEY

    path = tmp_path / "backbone.safetensors"
    save_backbone(built(text_spec()), path)
    for name in ("text.vocab", "conv_in.weight"):
        tensors = load_file(path)
        tensors[name] = tensors[name].to(torch.float32 if name == "text.vocab" else torch.uint8)
        save_file(tensors, tmp_path / "other.safetensors", {SPEC_KEY: text_spec().to_json()})
        with pytest.raises(BackboneFileInvalid, match=f"{name!r} holds .* convert it to"):
            inspect_backbone(tmp_path / "other.safetensors")


@torch.no_grad()
def test_on_the_meta_device_a_text_unet_runs_without_its_vocabulary() -> None:
    skeleton = on_meta(text_spec(), architecture("unet_condition"))
    with torch.device("meta"):
        x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
        assert skeleton.denoise(x, t, torch.zeros(2, 32)).shape == x.shape


def test_a_training_may_follow_a_sampling() -> None:
    backbone = built(text_spec())
    x, t, _ = batch()
    with torch.inference_mode():
        backbone(x, t, torch.tensor([0, 1, 2]))
    backbone.sites()["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"].module.requires_grad_(True)
    backbone(x, t, torch.tensor([0, 1, 2])).sum().backward()

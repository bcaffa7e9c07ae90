"""The native DiT: its start, its patches, and computing some of its tokens only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from affinery.backbones.contract import BackboneSpec, Latent, on_meta, parameter_count
from affinery.backbones.dit import DiT
from affinery.backbones.dit_spec import NAMED, imagenet_names, named_spec
from affinery.backbones.patch_transformer import position_table, sinusoid
from affinery.errors import ConfigInvalid, UnknownName
from tests import tiny_models as tiny


def test_all_tokens_kept_in_order_give_the_unmasked_prediction() -> None:
    model = tiny.backbone()
    x, t = tiny.inputs(3)
    classes = model.class_table[torch.tensor([0, 1, 3])]
    keep = torch.arange(model.tokens).repeat(3, 1)
    whole = model.denoise(x, t, classes)
    torch.testing.assert_close(model.denoise(x, t, classes, keep), model.patches(whole), rtol=0, atol=1e-6)


def test_each_sample_keeps_its_own_tokens() -> None:
    """Without attention between tokens, a kept token gives what it gives unmasked."""
    model = tiny.backbone()
    with torch.no_grad():
        for block in model.get_submodule("blocks").children():
            block.get_parameter("attn.proj.weight").zero_()
    x, t = tiny.inputs(2)
    classes = model.class_table[torch.tensor([0, 1])]
    keep = torch.tensor([[0, 3], [1, 2]])
    masked, whole = model.denoise(x, t, classes, keep), model.patches(model.denoise(x, t, classes))
    for i in range(2):
        torch.testing.assert_close(masked[i], whole[i, keep[i]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_cut_and_put_together_again(channels: int) -> None:
    model = DiT.build(tiny.spec(channels=channels, image_size=12))
    x = torch.randn(2, channels, 12, 12)
    patches = model.patches(x)
    assert patches.shape == (2, 9, 16 * channels)
    assert torch.equal(model.unpatch(patches), x)
    assert torch.equal(patches[0, 1].reshape(4, 4, channels).permute(2, 0, 1), x[0, :, 0:4, 4:8])


def test_patches_come_in_the_order_of_the_patch_embedding() -> None:
    """The token at a position is the embedding of the patch there, so masks of both agree."""
    model = DiT.build(tiny.spec())
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 0:4, 4:8] = 1
    changed = (model.x_embedder(x) - model.x_embedder(torch.zeros_like(x))).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [1]
    assert model.patches(x).abs().sum(-1)[0].nonzero().flatten().tolist() == [1]


def test_a_fresh_model_predicts_nothing_and_the_same_seed_gives_the_same_weights() -> None:
    one = DiT.build(tiny.spec()).initialise(torch.Generator().manual_seed(3))
    other = DiT.build(tiny.spec()).initialise(torch.Generator().manual_seed(3))
    assert tiny.digests(one) == tiny.digests(other)
    x, t = tiny.inputs(2)
    assert float(one(x, t, torch.tensor([0, 3])).detach().abs().max()) == 0


def test_the_position_table_is_fixed_and_does_not_train() -> None:
    model = DiT.build(tiny.spec())
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed, position_table(16, 2))
    rows = position_table(16, 3)[0]
    assert len({tuple(row.tolist()) for row in rows}) == 9


def test_time_steps_are_told_apart() -> None:
    table = sinusoid(torch.arange(1000), 256)
    assert table.shape == (1000, 256)
    assert len({tuple(row.tolist()) for row in table}) == 1000


def test_sites_name_every_layer_with_its_role_and_its_block() -> None:
    sites = DiT.build(tiny.spec()).sites()
    roles = {name: site.role for name, site in sites.items() if site.block in (None, 1)}
    assert roles == {
        "x_embedder.proj": "stem",
        "t_embedder.mlp.0": "time",
        "t_embedder.mlp.2": "time",
        "blocks.1": "block",
        "blocks.1.adaLN_modulation.1": "modulation",
        "blocks.1.attn": "attention",
        "blocks.1.attn.qkv": "qkv",
        "blocks.1.attn.proj": "proj",
        "blocks.1.mlp": "mlp",
        "blocks.1.mlp.fc1": "fc1",
        "blocks.1.mlp.fc2": "fc2",
        "final_layer.adaLN_modulation.1": "head-modulation",
        "final_layer.linear": "head",
    }
    assert {site.block for site in sites.values()} == {None, 0, 1}


def test_on_the_meta_device_a_model_has_its_parameters_and_no_memory() -> None:
    model = on_meta(tiny.spec(), DiT)
    assert parameter_count(model) == parameter_count(tiny.backbone())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_image_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="10 is not a multiple of the patch side 4"):
        DiT.build(tiny.spec(image_size=10))


def test_at_the_native_size_the_stored_positions_are_added_to_the_bit() -> None:
    model = DiT.build(tiny.spec())
    assert model.positions_at(2, 2) is model.pos_embed


def test_at_twice_the_size_coordinates_are_halved() -> None:
    """DiffFit's positional-encoding trick: (i/2, j/2), so every other token stands where one stood before."""
    model = DiT.build(tiny.spec(image_size=16))
    stored, wide = model.pos_embed[0].reshape(4, 4, 16), model.positions_at(8, 8)[0].reshape(8, 8, 16)
    torch.testing.assert_close(wide[::2, ::2], stored, rtol=0, atol=1e-7)
    between = position_table(16, 8, native=4)[0].reshape(8, 8, 16)[3, 5]
    by_hand = torch.tensor([2.5, 1.5])[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])  # column, row
    expected = torch.cat([torch.cat([angles.sin(), angles.cos()]) for angles in by_hand])
    torch.testing.assert_close(between, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (12, 12), (4, 4), (8, 16)])
def test_images_of_other_sizes_are_predicted_whole_and_masked_alike(height: int, width: int) -> None:
    model = tiny.backbone()
    assert isinstance(model, DiT)
    x, t = torch.randn(2, 1, height, width), torch.tensor([3, 500])
    classes = model.class_table[torch.tensor([0, 3])]
    whole = model.denoise(x, t, classes)
    assert whole.shape == x.shape
    assert torch.equal(model.unpatch(model.patches(x), (height // 4, width // 4)), x)
    keep = torch.arange(height * width // 16).flip(0).repeat(2, 1)
    masked = model.denoise(x, t, classes, keep)
    torch.testing.assert_close(masked.flip(1), model.patches(whole), rtol=0, atol=1e-5)


def test_a_hint_is_added_where_its_token_stands() -> None:
    model = tiny.backbone()
    x, t = tiny.inputs(2)
    classes = model.class_table[torch.tensor([0, 1])]
    assert model.hint_shape() == (16, 2, 2)
    assert model.hint_shape(16) == (16, 4, 4)
    nothing = torch.zeros(2, *model.hint_shape())
    assert torch.equal(model.denoise(x, t, classes, hint=nothing), model.denoise(x, t, classes))
    hint = nothing.clone()
    hint[:, :, 0, 1] = 1
    keep = torch.tensor([[0, 2, 3], [0, 2, 3]])  # not the one that is hinted at
    assert torch.equal(model.denoise(x, t, classes, keep, hint=hint), model.denoise(x, t, classes, keep))
    assert not torch.equal(model.denoise(x, t, classes, hint=hint), model.denoise(x, t, classes))


def test_a_learned_variance_doubles_the_channels() -> None:
    model = DiT.build(tiny.spec(config=tiny.spec().config | {"learn_sigma": True}))
    x, t = tiny.inputs(2)
    assert model(x, t, torch.tensor([0, 3])).shape == (2, 2, 8, 8)
    keep = torch.tensor([[1], [2]])
    assert model.denoise(x, t, model.class_table[:2], keep).shape == (2, 1, 32)


def test_of_a_latent_backbone_the_latents_are_denoised() -> None:
    spec = tiny.spec(image_size=64, channels=3, latent=Latent(channels=4, factor=8, scaling=0.18215))
    model = DiT.build(spec)
    assert model.tokens == 4
    assert model.hint_shape(128) == (16, 4, 4)
    x, t = tiny.inputs(2, size=8, channels=4)
    assert model(x, t, torch.tensor([0, 3])).shape == x.shape


def test_compiled_a_model_has_no_graph_break_at_any_size() -> None:
    model = tiny.backbone()
    classes, t = model.class_table[torch.tensor([0, 1])], torch.tensor([3, 500])
    compiled = torch.compile(model.denoise, backend="eager", fullgraph=True, dynamic=False)
    for x in (torch.randn(2, 1, 8, 8), torch.randn(2, 1, 16, 16)):
        torch.testing.assert_close(compiled(x, t, classes), model.denoise(x, t, classes))
        keep = torch.tensor([[0, 3], [1, 2]])
        torch.testing.assert_close(compiled(x, t, classes, keep), model.denoise(x, t, classes, keep))


def test_the_official_sizes_have_their_parameters() -> None:
    counts = {name: parameter_count(on_meta(named_spec(name), DiT)) for name in NAMED}
    assert counts["dit-xl-2"] == 675_129_632
    assert {name: round(count / 1e6) for name, count in counts.items() if name.endswith("-2")} == {
        "dit-s-2": 33,
        "dit-b-2": 131,
        "dit-l-2": 458,
        "dit-xl-2": 675,
    }
    assert len(NAMED) == 12


def test_an_official_size_is_told_by_its_name() -> None:
    spec = named_spec("dit-b-4", classes=10, image_size=512)
    assert spec.config == {"width": 768, "depth": 12, "heads": 12, "patch": 4, "learn_sigma": True}
    assert spec.num_classes == 10
    assert spec.latent_shape() == (4, 64, 64)
    assert spec.latent is not None
    assert spec.latent.scaling == 0.18215
    assert BackboneSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UnknownName, match="Did you mean 'dit-xl-2'"):
        named_spec("dit-xl2")
    with pytest.raises(ConfigInvalid, match="250 is not a multiple of the patch side 16"):
        on_meta(named_spec("dit-xl-2", image_size=250), DiT)


def test_imagenet_has_a_thousand_different_names() -> None:
    names = imagenet_names()
    assert len(set(names)) == 1000
    assert (names[0], names[207]) == ("tench", "golden retriever")
    assert named_spec("dit-s-8").class_names == names


HOSTILE: dict[str, Any] = {
    "width": 16.0,
    "depth": 10**9,
    "heads": True,
    "patch": 0,
    "mlp_ratio": float("nan"),
    "learn_sigma": 1,
    "profile": "offcial",
    "speed": 3,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_setting_that_cannot_be_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        DiT.build(tiny.spec(config=tiny.spec().config | {name: HOSTILE[name]}))
    with pytest.raises(ConfigInvalid, match="profile"):
        DiT.build(tiny.spec(config=tiny.spec().config | {"profile": ["official"]}))


def test_an_image_that_patches_do_not_tile_is_refused_in_a_pass_too() -> None:
    model = DiT.build(tiny.spec())
    with pytest.raises(ConfigInvalid, match="8 × 10 is no multiple of the patch side 4"):
        model(torch.zeros(1, 1, 8, 10), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ConfigInvalid, match="told classes, not captions"):
        model(torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.tensor([0]), text=torch.zeros(1, 4, 8))

"""Native DiT, diffusers' layers, and the real `DiTTransformer2DModel`: one network, two profiles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from affinery.backbones.contract import Backbone, BackboneSpec, Latent
from affinery.backbones.dit import DiT
from affinery.backbones.dit_conversion import from_native, to_native, with_profile
from affinery.backbones.dit_diffusers import DiffusersDiT, from_diffusers, to_diffusers
from affinery.backbones.dit_spec import PROFILES
from affinery.errors import BackboneFileInvalid, ConfigInvalid
from tests import tiny_models as tiny
from tests import tiny_unets

AnyDiT = TypeVar("AnyDiT", bound=Backbone)
CLOSE = 1e-5
CONFIG = {"width": 32, "depth": 3, "heads": 4, "patch": 2}
every_profile = pytest.mark.parametrize("profile", PROFILES)
every_sigma = pytest.mark.parametrize("learn_sigma", [False, True], ids=["plain", "learned sigma"])


def spec(arch: str, usual: str, profile: str = "", learn_sigma: bool = False) -> BackboneSpec:
    """Three classes, 12 × 12 latents of four channels."""
    config: dict[str, Any] = dict(CONFIG)
    config |= {"learn_sigma": True} if learn_sigma else {}
    config |= {"profile": profile} if profile and profile != usual else {}
    latent = Latent(channels=4, factor=8, scaling=0.18215)
    return tiny.spec(arch=arch, config=config, image_size=96, channels=3, latent=latent)


def randomised(model: AnyDiT) -> AnyDiT:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("pos_embed"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.freeze()
    return model


def native(profile: str = "official", learn_sigma: bool = False) -> DiT:
    return randomised(DiT.build(spec("dit", "official", profile, learn_sigma)))


def theirs(profile: str = "diffusers", learn_sigma: bool = False) -> DiffusersDiT:
    return randomised(DiffusersDiT.build(spec("dit_diffusers", "diffusers", profile, learn_sigma)))


def batch(size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    x, t = tiny.inputs(4, size=size, channels=4)
    return x, t, torch.tensor([0, 1, 2, 3])


def real(config: dict[str, Any], state: dict[str, Tensor]) -> DiTTransformer2DModel:
    model = DiTTransformer2DModel.from_config(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def random_real(learn_sigma: bool = False, **changes: Any) -> DiTTransformer2DModel:
    """A transformer as diffusers makes it, its copies tied as training from a common start leaves them."""
    torch.manual_seed(7)
    values: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_layers": 3,
        "sample_size": 12,
    }
    values |= {"out_channels": 8 if learn_sigma else None, "num_embeds_ada_norm": 3}
    model = DiTTransformer2DModel(**values | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


def difference(one: Tensor, other: Tensor) -> float:
    """The largest, as a share of the largest value."""
    return float(((one - other).abs().max() / other.abs().max()).detach())


@every_sigma
@every_profile
def test_converted_there_and_back_a_backbone_predicts_the_same(profile: str, learn_sigma: bool) -> None:
    one = native(profile, learn_sigma)
    other = from_native(one)
    back = to_native(other)
    expected = one(*batch())
    assert expected.shape[1] == (8 if learn_sigma else 4)
    assert difference(other(*batch()), expected) <= CLOSE
    assert torch.equal(back(*batch()), expected)
    assert tiny.same_weights(back, one)
    assert back.spec == one.spec
    assert one.config.profile == other.config.profile == profile


@every_sigma
@every_profile
def test_converted_from_diffusers_layers_a_backbone_predicts_the_same(
    profile: str, learn_sigma: bool
) -> None:
    one = theirs(profile, learn_sigma)
    other = to_native(one)
    assert difference(other(*batch()), one(*batch())) <= CLOSE
    assert tiny.same_weights(from_native(other), one)
    assert from_native(other).spec == one.spec


def test_masked_hinted_and_at_another_size_both_layouts_agree() -> None:
    one = native()
    other = from_native(one)
    x, t, labels = batch(24)
    classes, keep = one.class_table[labels], torch.stack([torch.randperm(144)[:50] for _ in range(4)])
    hint = torch.randn(4, *one.hint_shape(192))
    given: dict[str, Any] = {"keep": keep, "hint": hint}
    expected = one.denoise(x, t, classes, **given)
    assert expected.shape == (4, 50, 16)
    assert difference(other.denoise(x, t, classes, **given), expected) <= CLOSE


@every_sigma
def test_the_diffusers_profile_is_what_diffusers_computes(learn_sigma: bool) -> None:
    model = random_real(learn_sigma)
    ours = from_diffusers(model.config, model.state_dict())
    x, t, labels = batch()
    expected = model(x, timestep=t, class_labels=labels).sample
    assert difference(ours(x, t, labels), expected) <= CLOSE
    assert difference(to_native(ours)(x, t, labels), expected) <= CLOSE


@every_sigma
def test_the_official_profile_is_diffusers_with_both_differences_taken_back(learn_sigma: bool) -> None:
    model = random_real(learn_sigma, norm_eps=1e-6)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    ours = to_native(from_diffusers(model.config, model.state_dict(), profile="official"))
    x, t, labels = batch()
    assert difference(ours(x, t, labels), model(x, timestep=t, class_labels=labels).sample) <= CLOSE


def test_at_another_size_the_positions_are_those_of_diffusers_too() -> None:
    model = random_real()
    ours = from_diffusers(model.config, model.state_dict())
    x, t, labels = batch(20)
    assert difference(ours(x, t, labels), model(x, timestep=t, class_labels=labels).sample) <= CLOSE


def test_one_profile_for_the_other_is_no_small_matter() -> None:
    """The same weights under the other profile; this is why it is never changed on the way."""
    one = native("official")
    other = with_profile(one, "diffusers")
    assert tiny.same_weights(one, other)
    assert difference(other(*batch()), one(*batch())) > 0.1
    assert other.spec != one.spec
    assert with_profile(other, "official").spec == one.spec


def test_both_parts_of_a_profile_are_heard() -> None:
    """The norm's eps shows where a stream hardly varies, the frequencies everywhere."""
    x, t, labels = batch()
    one = native("official")
    with torch.no_grad():
        for name in ("x_embedder.proj.weight", "x_embedder.proj.bias", "pos_embed"):
            one.get_parameter(name).mul_(1e-3)
        for name, parameter in one.named_parameters():
            if ".attn." in name:
                parameter.zero_()
    other = with_profile(one, "diffusers")
    other.t_embedder.frequency_shift = 0
    assert difference(other(x, t, labels), one(x, t, labels)) > 1e-3


def test_guidance_is_on_three_latent_channels_as_official_and_on_four_as_in_diffusers() -> None:
    assert native("official").guided_channels == 3
    assert native("diffusers").guided_channels == 4
    assert theirs("official").guided_channels == 3
    assert DiT.build(tiny.spec()).guided_channels == 1


def test_exported_to_diffusers_and_imported_again_it_is_the_same_to_the_bit() -> None:
    one = theirs(learn_sigma=True)
    config, state = to_diffusers(one)
    model = real(config, state)
    x, t, labels = batch()
    assert difference(model(x, timestep=t, class_labels=labels).sample, one(x, t, labels)) <= CLOSE
    back = from_diffusers(
        config,
        state,
        class_names=one.spec.class_names,
        latent=one.spec.latent,
        prediction=one.spec.prediction,
        schedule=one.spec.schedule,
        defaults=one.spec.defaults,
    )
    assert tiny.same_weights(back, one)
    assert back.spec == one.spec


def test_an_export_is_a_folder_that_diffusers_reads(tmp_path: Path) -> None:
    config, state = to_diffusers(theirs())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    x, t, labels = batch()
    model = DiTTransformer2DModel.from_pretrained(tmp_path)
    assert difference(model(x, timestep=t, class_labels=labels).sample, theirs()(x, t, labels)) <= CLOSE
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    told = json.loads((tmp_path / "again" / "config.json").read_text())
    assert tiny.same_weights(from_diffusers(told, again), theirs())


def test_later_class_rows_are_exported_behind_the_null_row_and_are_classes_when_read_again() -> None:
    one, rows = theirs(), torch.randn(2, 32)
    config, state = to_diffusers(one, rows)
    assert (config["_layout"], config["_null_index"], config["num_embeds_ada_norm"]) == ("append", 3, 5)
    x, t, _ = batch()
    labels = torch.tensor([0, 3, 4, 5])  # a class, none, and the two new ones
    table = torch.cat([one.class_table, rows])
    expected = one.denoise(x, t, table[labels])
    assert difference(real(config, state)(x, timestep=t, class_labels=labels).sample, expected) <= CLOSE
    grown = from_diffusers(config, state)
    assert torch.equal(grown.class_table, table[[0, 1, 2, 4, 5, 3]])
    assert grown.spec.num_classes == 5
    assert torch.equal(grown(x, t, torch.tensor([0, 5, 3, 4])), expected)


def test_a_table_is_written_to_every_block_and_none_shares_memory() -> None:
    _, state = to_diffusers(theirs())
    copies = [
        state[f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"] for i in (0, 1, 2)
    ]
    assert all(torch.equal(copy, copies[0]) for copy in copies)
    assert len({copy.data_ptr() for copy in copies}) == 3


def test_an_export_that_diffusers_would_compute_otherwise_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="profile 'official', and diffusers computes its own"):
        to_diffusers(theirs("official"))
    odd = theirs()
    with torch.no_grad():
        odd.positions.add_(0.1)
    with pytest.raises(ConfigInvalid, match="not the fixed table"):
        to_diffusers(odd)
    with pytest.raises(ConfigInvalid, match="do not continue a table"):
        to_diffusers(theirs(), torch.zeros(2, 31))


def test_a_network_that_diffusers_does_not_have_is_not_converted() -> None:
    odd = DiT.build(replace(native().spec, config=CONFIG | {"mlp_ratio": 2}))
    with pytest.raises(ConfigInvalid, match="2 is not 4"):
        from_native(odd)


@pytest.mark.parametrize(
    "changes",
    [{"mlp_ratio": 2}, {"profile": "none"}, {"profile": []}, {"width": 2**40}, {"depth": 0}, {"speed": 1}],
)
def test_a_setting_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match=next(iter(changes))):
        DiffusersDiT.build(replace(theirs().spec, config=CONFIG | changes))


@pytest.mark.parametrize("part", ["class_embedder.embedding_table.weight", "timestep_embedder.linear_2.bias"])
def test_copies_that_were_trained_apart_are_refused(part: str) -> None:
    model = random_real()
    state = model.state_dict()
    state[f"transformer_blocks.2.norm1.emb.{part}"] += 1e-6
    with pytest.raises(BackboneFileInvalid, match=f"block 2's copy of '{part}' is not block 0's"):
        from_diffusers(model.config, state)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine = True"),
        ({"activation_fn": "geglu"}, "activation_fn = 'geglu'"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"num_layers": "3"}, "num_layers = '3'"),
        ({"sample_size": 10**9}, "sample_size = 1000000000"),
        ({"out_channels": 5}, "out_channels = 5"),
        ({"num_layers": 2}, "transformer_blocks.2"),
        ({"num_layers": 4}, "block 3's copy"),
        ({"num_embeds_ada_norm": 4}, r"has the shape \[4, 32\]"),
        ({"attention_head_dim": 16}, "has the shape"),
        ({"_null_index": 9}, "null row, 9, is none of 4 rows"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(changes: dict[str, Any], said: str) -> None:
    model = random_real()
    with pytest.raises(BackboneFileInvalid, match=said) as refused:
        from_diffusers(dict(model.config) | changes, model.state_dict(), source="models/transformer")
    assert str(refused.value).startswith("models/transformer is not a usable backbone: ")


def test_weights_trained_as_official_are_read_as_such_from_a_diffusers_folder() -> None:
    """facebook/DiT-XL-2-256 is such a folder: official weights, and diffusers' eps in its config."""
    trained = native("official")
    config, state = to_diffusers(from_native(with_profile(trained, "diffusers")))
    read = from_diffusers(config, state, profile="official")
    assert read.spec.config["profile"] == "official"
    assert difference(read(*batch()), trained(*batch())) <= CLOSE


def test_a_vae_comes_along_between_our_layouts_and_stays_out_of_diffusers_transformer() -> None:
    spec_with_vae = replace(native().spec, image_size=24, latent=tiny_unets.LATENT)
    one = DiT.build(spec_with_vae)
    one.freeze()
    other = from_native(one)
    images = torch.rand(2, 3, 24, 24)
    assert torch.equal(other.encode(images), one.encode(images))
    assert tiny.same_weights(to_native(other), one)
    with torch.no_grad():
        other.get_parameter("vae.decoder.conv_in.weight").zero_()
    assert float(one.get_parameter("vae.decoder.conv_in.weight").abs().max()) > 0
    _, state = to_diffusers(from_native(with_profile(one, "diffusers")))
    assert not [name for name in state if "vae" in name]


def test_masks_and_compilation_take_no_graph_break() -> None:
    one = theirs()
    x, t, labels = batch()
    classes, keep = one.class_table[labels], torch.randint(36, (4, 9))
    compiled = torch.compile(one.denoise, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x, t, classes, keep), one.denoise(x, t, classes, keep))
    torch.testing.assert_close(compiled(x, t, classes), one.denoise(x, t, classes))

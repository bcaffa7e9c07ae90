"""A latent backbone carries its VAE: images in, latents denoised, images out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from affinery.backbones.contract import BackboneSpec, Latent, on_meta
from affinery.backbones.dit import DiT
from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from affinery.backbones.unet import ClassUNet
from affinery.errors import BackboneFileInvalid, ConfigInvalid
from tests import tiny_models as tiny
from tests.tiny_unets import LATENT, VAE, built, latent_spec, unet_spec


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def spec_of(arch: str) -> BackboneSpec:
    if arch == "unet":
        return latent_spec()
    return tiny.spec(image_size=16, channels=3, latent=LATENT)


@pytest.mark.parametrize("arch", ["dit", "unet"])
def test_a_latent_is_the_scaled_mode_of_the_posterior_and_decodes_as_diffusers_would(arch: str) -> None:
    backbone = built(spec_of(arch))
    vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
    vae.load_state_dict(backbone.vae.state_dict())
    z = backbone.encode(images())
    assert z.shape == (3, *backbone.spec.latent_shape()) == (3, 4, 8, 8)
    torch.testing.assert_close(z, (vae.encode(images()).latent_dist.mean - 0.25) * 0.5)
    drawn = backbone.decode(z)
    torch.testing.assert_close(drawn, vae.decode(z / 0.5 + 0.25).sample.clamp(-1, 1))
    assert drawn.shape == (3, 3, 16, 16)
    assert backbone.decode(100 * z).abs().max() == 1
    assert torch.equal(backbone.encode(images()), z)


@pytest.mark.parametrize("arch", ["dit", "unet"])
def test_the_vae_stands_in_the_backbones_file_and_in_its_fingerprint(arch: str, tmp_path: Path) -> None:
    backbone = built(spec_of(arch))
    save_backbone(backbone, tmp_path / "a.safetensors")
    loaded = load_backbone(tmp_path / "a.safetensors")
    assert torch.equal(loaded.encode(images()), backbone.encode(images()))
    assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())
    backbone.vae.quant_conv.bias[0] += 1
    save_backbone(backbone, tmp_path / "b.safetensors")
    one, other = (inspect_backbone(tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.fingerprint != other.fingerprint
    assert one.spec == other.spec == spec_of(arch)


def test_a_vae_is_no_site_of_adapters() -> None:
    assert not any(name.startswith("vae.") for name in built(latent_spec()).sites())


def test_what_denoises_pixels_encodes_nothing() -> None:
    backbone = built(unet_spec())
    x = torch.full((1, 1, 8, 8), 1.5)
    assert torch.equal(backbone.encode(x), x)
    assert torch.equal(backbone.decode(x), torch.ones(1, 1, 8, 8))


def test_a_latent_backbone_without_its_vae_denoises_but_neither_encodes_nor_decodes() -> None:
    backbone = built(latent_spec(latent=replace(LATENT, vae=None)))
    x, t = tiny.inputs(2, channels=4)
    assert backbone(x, t, torch.tensor([0, 1])).shape == x.shape
    for way in (backbone.encode, backbone.decode):
        with pytest.raises(ConfigInvalid, match="its file holds no VAE"):
            way(x)


HOSTILE: dict[str, Latent] = {
    "an empty config": replace(LATENT, vae={}),
    "an unknown setting": replace(LATENT, vae=VAE | {"speed": 1}),
    "other latent channels": replace(LATENT, vae=VAE | {"latent_channels": 3}),
    "another factor": replace(LATENT, factor=4),
    "a huge width": replace(LATENT, vae=VAE | {"block_out_channels": [4, 2**40]}),
    "many layers": replace(LATENT, vae=VAE | {"layers_per_block": 10**9}),
    "blocks that are none": replace(LATENT, vae=VAE | {"down_block_types": ["AttnDownBlock2D"] * 2}),
    "an activation that is none": replace(LATENT, vae=VAE | {"act_fn": "__import__"}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_vae_that_cannot_be_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    backbone = built(latent_spec())
    backbone.spec = latent_spec(latent=HOSTILE[what])
    save_backbone(backbone, path)
    with pytest.raises(BackboneFileInvalid):
        inspect_backbone(path)


def test_on_the_meta_device_a_vae_takes_no_memory() -> None:
    for arch in (ClassUNet, DiT):
        spec = latent_spec() if arch is ClassUNet else spec_of("dit")
        assert all(tensor.is_meta for tensor in on_meta(spec, arch).state_dict().values())

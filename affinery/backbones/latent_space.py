"""The space of a latent backbone: diffusers' `AutoencoderKL`, which a backbone file may hold under `vae.`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from affinery.backbones.network_config import check_config, only
from affinery.errors import ConfigInvalid

if TYPE_CHECKING:
    from affinery.backbones.contract import Latent

VAE_SETTINGS = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "latent_channels",
    "norm_num_groups",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
)


def build_vae(latent: Latent) -> nn.Module:
    """An untrained VAE of the latent space's config, on the current default device. Raises ConfigInvalid."""
    from diffusers import AutoencoderKL

    config = latent.vae or {}
    check_config("vae", config, VAE_SETTINGS)
    only(
        "vae",
        config,
        {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)},
    )
    vae: nn.Module = AutoencoderKL(**config)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if (factor, config["latent_channels"]) != (latent.factor, latent.channels):
        raise ConfigInvalid(
            "vae",
            f"it makes {config['latent_channels']} channels at 1/{factor} of the size, but the latent space "
            f"has {latent.channels} at 1/{latent.factor}.",
        )
    return vae

"""The space of a latent backbone: diffusers' `AutoencoderKL`, which a backbone file may hold under `vae.`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affinery.backbones.network_config import arguments, check_config, only
from affinery.errors import ConfigInvalid
from affinery.importing import IMPORTING

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


def build_vae(latent: Latent) -> Any:
    """An untrained VAE of the latent space's config, on the current default device. Raises ConfigInvalid."""
    with IMPORTING:
        from diffusers import AutoencoderKL

    config = latent.vae or {}
    check_config("vae", config, arguments(AutoencoderKL, VAE_SETTINGS))
    only(
        "vae",
        config,
        {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)},
    )
    vae: Any = AutoencoderKL(**config)
    factor, channels = 2 ** (len(vae.config.block_out_channels) - 1), vae.config.latent_channels
    if (factor, channels) != (latent.factor, latent.channels):
        raise ConfigInvalid(
            "vae",
            f"it makes {channels} channels at 1/{factor} of the size, but the latent space has "
            f"{latent.channels} at 1/{latent.factor}.",
        )
    return vae

"""The class-conditional CNN: diffusers' `UNet2DModel` (Ho et al. 2020), on pixels or latents.

A model that was trained without classes becomes a backbone whose class table is one null row of zeros: it
predicts what it predicted before, to the bit, and tasks with classes can be learnt on it.
"""

from __future__ import annotations

from diffusers import UNet2DModel

from affinery.backbones.unet_stages import UNet

SETTINGS = (
    "sample_size",
    "in_channels",
    "out_channels",
    "center_input_sample",
    "time_embedding_type",
    "time_embedding_dim",
    "freq_shift",
    "flip_sin_to_cos",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "downsample_padding",
    "downsample_type",
    "upsample_type",
    "dropout",
    "act_fn",
    "attention_head_dim",
    "norm_num_groups",
    "attn_norm_num_groups",
    "norm_eps",
    "resnet_time_scale_shift",
    "add_attention",
    "num_train_timesteps",
)
# Fourier time and skip blocks belong to variance-exploding diffusion, whose schedule is none of ours.
SUPPORTED: dict[str, tuple[object, ...]] = {
    "time_embedding_type": ("positional",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}


class ClassUNet(UNet):
    """`UNet2DModel` with our class table."""

    NETWORK = UNet2DModel
    SETTINGS = SETTINGS
    SUPPORTED = SUPPORTED
    ANY_SIZE = False


BACKBONE = ClassUNet

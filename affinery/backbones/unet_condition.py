"""The text-conditional U-Net of Stable Diffusion: diffusers' `UNet2DConditionModel` (Rombach et al. 2022).

Captions enter through cross-attention; classes, which the published checkpoints do not have, are added to the
time step. So tasks of captions and tasks of classes can both be learnt on it.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from affinery.backbones.contract import BackboneSpec, Latent, Text
from affinery.backbones.unet_stages import UNet
from affinery.errors import ConfigInvalid, UnknownName

SETTINGS = (
    "sample_size",
    "in_channels",
    "out_channels",
    "center_input_sample",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "only_cross_attention",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "mid_block_scale_factor",
    "dropout",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "attention_head_dim",
    "dual_cross_attention",
    "use_linear_projection",
    "upcast_attention",
    "resnet_time_scale_shift",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "time_embedding_type",
    "time_embedding_dim",
    "conv_in_kernel",
    "conv_out_kernel",
    "mid_block_only_cross_attention",
)
SUPPORTED: dict[str, tuple[object, ...]] = {
    "time_embedding_type": ("positional",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "dual_cross_attention": (False,),
    "conv_in_kernel": (3, 1, 5, 7),
    "conv_out_kernel": (3, 1, 5, 7),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
STABLE_DIFFUSION_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
NAMED = {
    "sd15-unet": BackboneSpec(
        arch="unet_condition",
        config={
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        class_names=(),
        image_size=512,
        channels=3,
        schedule=STABLE_DIFFUSION_SCHEDULE,
        defaults={"sampler": {"steps": 50, "guidance": 7.5}},
        latent=Latent(channels=4, factor=8, scaling=0.18215),
        text=Text(length=77, width=768),
    )
}


def named_spec(name: str) -> BackboneSpec:
    """The spec of a well-known U-Net, for building and counting without its weights. Raises UnknownName."""
    if name not in NAMED:
        raise UnknownName("U-Net", name, NAMED)
    return NAMED[name]


class TextUNet(UNet):
    """`UNet2DConditionModel` with a class table of our own."""

    NETWORK = UNet2DConditionModel
    SETTINGS = SETTINGS
    SUPPORTED = SUPPORTED
    ANY_SIZE = True

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        width = spec.config.get("cross_attention_dim", 1280)
        if spec.text is None or spec.text.width != width:
            found = None if spec.text is None else spec.text.width
            raise ConfigInvalid("text.width", f"the network takes {width}, but the spec says {found}.")
        self._no_caption: Tensor | None = None

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor,
        keep: Tensor | None = None,
        text: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Tensor:
        if text is None:
            text = self.no_caption().to(x).expand(len(x), -1, -1)
        return super().denoise(x, t, classes, keep, text, hint)

    def no_caption(self) -> Tensor:
        """(1, L, E): the embedding of the empty caption; zeros where the file holds no text encoder."""
        if self._no_caption is None:
            assert self.spec.text is not None
            zeros = torch.zeros(1, self.spec.text.length, self.spec.text.width)
            known = self.text is not None and not self.class_table.is_meta
            with torch.inference_mode(False):  # a training may use it after a sampling
                self._no_caption = self.encode_text([""]) if known else zeros
        return self._no_caption


BACKBONE = TextUNet

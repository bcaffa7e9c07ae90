"""What the native DiT and diffusers' share: tokens cut from patches, their positions, and one forward pass.

Shape legend: B samples, C channels, H×W what is denoised, p patch side, R×L rows and columns of patches,
T = R·L tokens, K kept tokens, D width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from affinery.backbones.contract import Backbone, BackboneSpec
from affinery.backbones.dit_spec import PROFILES, DiTConfig
from affinery.errors import ConfigInvalid


def sinusoid(positions: Tensor, dim: int, shift: int = 0, max_period: float = 10_000.0) -> Tensor:
    """positions: (B,) → (B, dim): cosines, then sines, of geometrically spaced frequencies."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period)
        * torch.arange(half, dtype=torch.float32, device=positions.device)
        / (half - shift)
    )
    angles = positions[:, None].float() * frequencies[None]  # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(
    dim: int,
    rows: int,
    columns: int | None = None,
    native: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """→ (1, R·L, dim): fixed 2-D sine-cosine positions, half the width for columns, half for rows.

    native: the side, in patches, that a backbone was trained with. Another size is laid over the same range
    of coordinates, (i/2, j/2) at twice the side: DiffFit's positional-encoding trick.
    """
    columns = columns or rows
    omega = 1.0 / 10_000 ** (torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim / 4.0))

    def encode(count: int) -> Tensor:
        coordinates = torch.arange(count, dtype=torch.float64, device=device) * (native or count) / count
        angles = coordinates[:, None] * omega[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (count, dim/2)

    across = encode(columns)[None].expand(rows, -1, -1)
    down = encode(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], dim=2).reshape(1, rows * columns, dim)


class PatchTransformer(Backbone):
    """A transformer over the patches of what is denoised, conditioned on time step and class.

    arch: the name of its file; usual_profile: the one meant where a config names none.
    """

    arch: ClassVar[str]
    usual_profile: ClassVar[str]

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        config = DiTConfig.of(spec, self.usual_profile)
        if spec.text is not None:
            raise ConfigInvalid("text", f"a backbone of {spec.arch} is told classes, not captions.")
        self.attach(spec)
        self.config, self.profile = config, PROFILES[config.profile]
        self.patch = config.patch
        self.side = self._grid(spec.image_size)[0]
        self.in_channels = spec.latent_shape()[0]
        self.out_channels = self.in_channels * (2 if config.learn_sigma else 1)

    def _grid(self, image_size: int) -> tuple[int, int]:
        """Rows and columns of patches of an image, from its size in pixels."""
        pixels = self.patch * (self.spec.latent.factor if self.spec.latent else 1)
        if image_size % pixels:
            raise ConfigInvalid("image_size", f"{image_size} is not a multiple of the patch side {pixels}.")
        return image_size // pixels, image_size // pixels

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """(1, T, D): the stored positions of the native size."""

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, T, D): the patch embedding, without positions."""

    @abstractmethod
    def condition(self, t: Tensor, classes: Tensor) -> Tensor:
        """t: (B,); classes: (B, D) → (B, D)."""

    @abstractmethod
    def trunk(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """All blocks. tokens: (B, T or K, D); condition: (B, D) → (B, T or K, D)."""

    @abstractmethod
    def head(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """The last layers. tokens: (B, T or K, D); condition: (B, D) → (B, T or K, p²·C)."""

    @property
    def tokens(self) -> int:
        return self.side * self.side

    @property
    def guided_channels(self) -> int:
        """Classifier-free guidance changes the first so many channels of a prediction; the rest stay as they
        are. DiT's own sampler guides 3 of 4 latent channels, diffusers' pipeline all of them.
        """
        return min(self.profile.guided_channels or self.in_channels, self.in_channels)

    def hint_shape(self, image_size: int | None = None) -> tuple[int, int, int]:
        rows, columns = self._grid(image_size or self.spec.image_size)
        return self.config.width, rows, columns

    def positions_at(self, rows: int, columns: int) -> Tensor:
        """(1, R·L, D): what is stored at the native size, and the same range of coordinates at any other."""
        stored = self.positions
        if (rows, columns) == (self.side, self.side):
            return stored
        return position_table(stored.shape[-1], rows, columns, self.side, stored.device).to(stored.dtype)

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor,
        keep: Tensor | None = None,
        text: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Tensor:
        if text is not None:
            raise ConfigInvalid("captions", f"a backbone of {self.spec.arch} is told classes, not captions.")
        rows, columns = self._grid_of(x)
        tokens = self.stem(x) + self.positions_at(rows, columns)  # (B, T, D)
        if hint is not None:
            tokens = tokens + hint.flatten(2).transpose(1, 2)
        if keep is not None:
            tokens = tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[-1]))  # (B, K, D)
        condition = self.condition(t, classes)
        patches = self.head(self.trunk(tokens, condition), condition)
        return patches if keep is not None else self.unpatch(patches, (rows, columns))

    def _grid_of(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of (B, C, H, W)."""
        height, width = x.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ConfigInvalid("size", f"{height} × {width} is no multiple of the patch side {self.patch}.")
        return height // self.patch, width // self.patch

    def patches(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.shape
        (rows, columns), p = self._grid_of(x), self.patch
        grid = x.reshape(batch, channels, rows, p, columns, p)
        return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, p * p * channels)

    def unpatch(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, R·L, p²·C) → (B, C, H, W): the inverse of `patches`. grid: (R, L), or the native one."""
        (rows, columns), p = grid or (self.side, self.side), self.patch
        batch, _, values = patches.shape
        channels = values // (p * p)
        cut = patches.reshape(batch, rows, columns, p, p, channels)
        return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * p, columns * p)

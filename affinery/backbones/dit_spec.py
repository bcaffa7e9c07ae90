"""What a DiT's spec says: its settings and its profile, the official sizes, and what weights do not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from affinery.backbones.contract import BackboneSpec, Latent
from affinery.errors import ConfigInvalid, UnknownName

LIMITS = {"width": 65_536, "depth": 256, "heads": 1024, "patch": 1024}


@dataclass(frozen=True)
class Profile:
    """Where two implementations of DiT compute different things from the same weights.

    frequency_shift: the time step's frequencies are 10000^(−i / (half − shift)), for i from 0 to half − 1.
    mlp_norm_eps: added to the variance in the norm before the MLP; the other norms add 1e-6 in both.
    guided_channels: classifier-free guidance changes the first so many channels; None means all.
    """

    frequency_shift: int
    mlp_norm_eps: float
    guided_channels: int | None


# A third difference, label dropout, which diffusers draws once a block, so that one sample may have its
# label in some blocks and none in others, never shows here: dropping labels is the trainer's work.
PROFILES = {
    "official": Profile(frequency_shift=0, mlp_norm_eps=1e-6, guided_channels=3),
    "diffusers": Profile(frequency_shift=1, mlp_norm_eps=1e-5, guided_channels=None),
}


@dataclass(frozen=True)
class DiTConfig:
    """mlp_ratio: the MLP's hidden width over the model's; learn_sigma: it predicts a variance too;
    profile: a name in `PROFILES`.
    """

    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    profile: str = "official"

    def __post_init__(self) -> None:
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigInvalid(name, f"{value!r} is not a whole number from 1 to {most}.")
        if type(self.mlp_ratio) not in (int, float) or not 0.01 <= self.mlp_ratio <= 64:
            raise ConfigInvalid("mlp_ratio", f"{self.mlp_ratio!r} is not a number from 0.01 to 64.")
        if type(self.learn_sigma) is not bool:
            raise ConfigInvalid("learn_sigma", f"{self.learn_sigma!r} is neither true nor false.")
        if type(self.profile) is not str or self.profile not in PROFILES:
            raise ConfigInvalid("profile", f"{self.profile!r} is none of {', '.join(PROFILES)}.")
        if self.width % 4 or self.width % self.heads:
            raise ConfigInvalid("width", f"{self.width} must be a multiple of 4 and of heads = {self.heads}.")

    @classmethod
    def of(cls, spec: BackboneSpec, usual_profile: str) -> DiTConfig:
        """The settings in a spec; usual_profile: the one meant where none is named. Raises ConfigInvalid."""
        try:
            return cls(**{"profile": usual_profile} | spec.config)
        except TypeError as error:  # a setting too many or too few
            raise ConfigInvalid("config", f"{error}.") from error

    def spec_values(self, usual_profile: str) -> dict[str, Any]:
        """The settings as a spec holds them: what is as usual is left out."""
        values: dict[str, Any] = {name: getattr(self, name) for name in LIMITS}
        usual = {"mlp_ratio": 4.0, "learn_sigma": False, "profile": usual_profile}
        return values | {n: getattr(self, n) for n, value in usual.items() if getattr(self, n) != value}


STABLE_DIFFUSION = Latent(channels=4, factor=8, scaling=0.18215)
OFFICIAL_SCHEDULE: dict[str, Any] = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "num_train_timesteps": 1000,
    "clip_sample": False,
}

# Width, depth and heads of the official sizes (DiT, table 1); each comes with patches of 2, 4 and 8.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
PATCHES = (2, 4, 8)
HEADS = {width: heads for width, _, heads in SIZES.values()}
NAMED: dict[str, dict[str, int]] = {
    f"dit-{size}-{patch}": {"width": width, "depth": depth, "heads": heads, "patch": patch}
    for size, (width, depth, heads) in SIZES.items()
    for patch in PATCHES
}


def named_spec(name: str, classes: int = 1000, image_size: int = 256) -> BackboneSpec:
    """The spec of an official size, "dit-xl-2" or another of `NAMED`, on Stable Diffusion's latents.

    Raises UnknownName.
    """
    if name not in NAMED:
        raise UnknownName("size of DiT", name, list(NAMED))
    names = imagenet_names() if classes == 1000 else tuple(f"class {i}" for i in range(classes))
    return BackboneSpec(
        arch="dit",
        config=NAMED[name] | {"learn_sigma": True},
        class_names=names,
        image_size=image_size,
        channels=3,
        schedule=dict(OFFICIAL_SCHEDULE),
        latent=STABLE_DIFFUSION,
    )


def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1,000 classes, in the order in which all its checkpoints count them."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


class Facts(TypedDict, total=False):
    """What weights do not tell of a backbone, and whoever reads them may know; see `BackboneSpec`.

    class_names: "class 0", "class 1" … where not given. latent: Stable Diffusion's where not given and what
    is denoised has four channels; None means that these are pixels.
    """

    class_names: tuple[str, ...]
    latent: Latent | None
    prediction: str
    schedule: dict[str, Any]
    defaults: dict[str, Any]


def spec_of(
    arch: str, config: dict[str, Any], classes: int, side: int, channels: int, **facts: Unpack[Facts]
) -> BackboneSpec:
    """The spec of weights of N classes which denoise (channels, side, side). Raises ConfigInvalid."""
    names = facts.get("class_names") or tuple(f"class {i}" for i in range(classes))
    if len(names) != classes:
        raise ConfigInvalid(
            "class_names",
            f"{len(names)} are given, but the class table has {classes + 1} rows: {classes} classes, and the "
            "row that means no class. Without that row (no label dropout in training) there is no guidance.",
        )
    latent = facts.get("latent", STABLE_DIFFUSION if channels == STABLE_DIFFUSION.channels else None)
    if latent is not None and latent.channels != channels:
        raise ConfigInvalid("latent", f"it has {latent.channels} channels, but the weights take {channels}.")
    spec = BackboneSpec(
        arch=arch,
        config=config,
        class_names=names,
        image_size=side * (latent.factor if latent else 1),
        channels=_image_channels(latent) if latent else channels,
        prediction=facts.get("prediction", "epsilon"),
        schedule=facts.get("schedule", dict(OFFICIAL_SCHEDULE)),
        defaults=facts.get("defaults", {}),
        latent=latent,
    )
    try:
        spec.check()
    except ValueError as error:
        raise ConfigInvalid("spec", f"{error}.") from error
    return spec


def _image_channels(latent: Latent) -> Any:
    return 3 if latent.vae is None else latent.vae.get("in_channels", 3)

"""Who looks at images before their distances are taken: its name and digest stand beside every figure.

    recogniser                 trained on the dataset itself, once; for small images
    inception=WEIGHTS.pth      Inception v3 as FID defines it (torch-fidelity's conversion of its weights)
    clip=FOLDER                a CLIP model of transformers; it gives the CLIP score too
    timm:MODEL=CHECKPOINT      any model of timm

Weights come from files of the user; nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery import tensor_files
from affinery.errors import ConfigInvalid, PlaceInvalid, near
from affinery.importing import IMPORTING
from trainers.conditions import folder_digest
from trainers.data import Images, as_bytes, as_unit
from trainers.evaluation.recogniser import Recogniser, looked_at, train_recogniser
from trainers.evaluation.spelling import RECOGNISER, spelt
from trainers.latents import kept, module_digest

INCEPTION_SHA256 = "6726825d"
"""How the digest of the weights that define FID begins; torch-fidelity gives their file this name."""
AT_ONCE = 64
MOST_REAL = 10_000
TURNS = 4
LONG = 400
WRAPPED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Under which names trainings with timm keep the weights in a checkpoint, the best first."""


@dataclass(frozen=True)
class Seen:
    """features: (n, D); logits: (n, K), where the extractor is a classifier."""

    features: Tensor
    logits: Tensor | None


class Extractor(Protocol):
    """width: D. digest: of its weights. Figures are called after its name, FID only where that is earned."""

    name: str
    digest: str
    width: int

    def see(self, images: Tensor) -> Seen:
        """images: (n, C, H, W) in [−1, 1]; any number, any size."""
        ...


def figure_name(measure: str, extractor: Extractor) -> str:
    """'FD' → 'FD[recogniser]', or 'FID' where the extractor is the one that FID is defined by."""
    own = {"FD": "FID", "KD": "KID", "IS": "IS"}
    if isinstance(extractor, Inception) and extractor.official:
        return own.get(measure, measure)
    return f"{measure}[{extractor.name}]"


def extractor_of(
    asked: str, dataset_digest: str, images: Images, classes: int, cache: Path | None = None, seed: int = 0
) -> Extractor:
    """The extractor that is meant. images: those that a recogniser learns from, if one is meant.

    cache: where what is trained here is kept. Raises ConfigInvalid or UnknownName.
    """
    meant = spelt(asked)
    if meant.family == RECOGNISER:
        return Small(recogniser_of(dataset_digest, images, classes, cache, seed))
    path = Path(meant.where).expanduser()
    if not path.exists():
        raise PlaceInvalid("extractor", str(path), "is not there; name weights that are on this machine", "")
    if meant.family == "clip":
        if not path.is_dir():
            raise PlaceInvalid("extractor", str(path), "is no folder; name the one that holds the model", "")
        return Clip(path)
    if not path.is_file():
        raise PlaceInvalid("extractor", str(path), "is no file; name the one that holds the weights", "")
    return Inception(path) if meant.family == "inception" else Timm(meant.model, path)


def recogniser_of(
    dataset_digest: str, images: Images, classes: int, cache: Path | None = None, seed: int = 0
) -> Recogniser:
    """A classifier of a dataset's images, trained once and kept; of one class, of how they are turned."""
    shape = images.images.shape
    size = "x".join(map(str, shape))
    path = None if cache is None else cache / "recognisers" / f"{dataset_digest}-{size}-{seed}-1.safetensors"
    outputs = classes if classes > 1 else TURNS
    model = Recogniser(shape[1], outputs)
    if path is not None and _load(model, path):
        return model.eval()
    rows = compared_with(len(images.labels))
    pictures = looked_at(images.images, rows)
    if classes > 1:
        model = train_recogniser(pictures, images.labels[rows], classes, seed=seed)
    else:
        model = train_recogniser(*turned(pictures), TURNS, seed=seed)
    if path is not None:
        from safetensors.torch import save

        path.parent.mkdir(parents=True, exist_ok=True)
        tensor_files.write_whole(path, save({name: t.contiguous() for name, t in model.state_dict().items()}))
    return model


def compared_with(count: int) -> Tensor:
    """The real images that are looked at: all, or as many as there is time for, always the same."""
    if count <= MOST_REAL:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_REAL].sort().values


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Square images, each by so many quarters: something to tell apart where there are no classes."""
    quarters = torch.arange(len(images)) % TURNS
    return torch.stack(
        [torch.rot90(x, int(k), (1, 2)) for x, k in zip(images, quarters, strict=True)]
    ), quarters


def _load(model: nn.Module, path: Path) -> bool:
    from safetensors.torch import load

    try:
        model.load_state_dict(load(path.read_bytes()))
    except FileNotFoundError:
        return False
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a file of the cache, it is made anew
        path.unlink(missing_ok=True)
        return not str(error)
    return True


def features_of(extractor: Extractor, images: Images, rows: Tensor, cache: Path | None, key: str) -> Tensor:
    """(n, D): what an extractor sees of the real images of some rows, computed once for each key.

    key: of the dataset version, its part and the extractor.
    """

    def batches() -> Iterator[Tensor]:
        for part in rows.split(AT_ONCE):
            yield extractor.see(as_unit(images.images[part])).features.float()

    if cache is None:
        return torch.cat(list(batches()))
    return kept(cache / "features", key, (len(rows), extractor.width), batches)


def in_batches(images: Tensor, look: Callable[[Tensor], Seen]) -> Seen:
    """Some images at a time."""
    with torch.inference_mode():
        seen = [look(part) for part in images.split(AT_ONCE)]
    logits = [each.logits for each in seen if each.logits is not None]
    return Seen(torch.cat([each.features for each in seen]), torch.cat(logits) if logits else None)


def in_colour(images: Tensor) -> Tensor:
    """(n, C, H, W) → (n, 3, H, W): what networks of photographs take."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Small:
    """The recogniser, up to its last layer but one: 64 numbers an image."""

    width = 64

    def __init__(self, model: Recogniser) -> None:
        self.model = model
        self.name = RECOGNISER
        self.digest = module_digest("affinery recogniser 1\0", model)

    def see(self, images: Tensor) -> Seen:
        def look(x: Tensor) -> Seen:
            seen = self.model.seen(x)
            return Seen(seen.mean(dim=(2, 3)), self.model.head(seen.flatten(1)))

        return in_batches(images, look)


class Inception:
    """Inception v3 for FID. official: whether these are the weights that FID is defined by."""

    width = 2048

    def __init__(self, path: Path) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            self.digest = tensor_files.sha256_file(path)
            torch.load(path, weights_only=True)  # what is more than weights is refused before it is run
            self.model = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            ).to(device())
        except Exception as error:
            raise PlaceInvalid(
                "extractor", str(path), "holds no weights of Inception v3", _words(error)
            ) from error
        self.official = self.digest.startswith(INCEPTION_SHA256)
        self.name = "inception" if self.official else f"inception-{self.digest[:8]}"

    def see(self, images: Tensor) -> Seen:
        def look(x: Tensor) -> Seen:
            features, logits = self.model(as_bytes(in_colour(x)).to(device()))
            return Seen(features.float().cpu(), logits.float().cpu())

        return in_batches(images, look)


class Timm:
    """A model of timm with a checkpoint, in its own size and normalisation."""

    def __init__(self, model: str, path: Path) -> None:
        with IMPORTING:
            import timm

        if not timm.is_model(model):
            raise ConfigInvalid(
                "extractor", f"timm knows no model {model!r}.{near(model, timm.list_models())}"
            )
        self.name = f"timm:{model}"
        try:
            self.digest = tensor_files.sha256_file(path)
            self.model = timm.create_model(model, pretrained=False)
            self.model.load_state_dict(timm.models.clean_state_dict(_weights(path)))
        except Exception as error:
            raise PlaceInvalid(
                "extractor", str(path), f"is no checkpoint of timm's {model}", _words(error)
            ) from error
        self.model.eval().to(device())
        about = timm.data.resolve_model_data_config(self.model)
        self.width = int(self.model.num_features)
        self.size, self.resize = tuple(about["input_size"][1:]), str(about["interpolation"])
        self.mean, self.std = (torch.tensor(about[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
        self.width = self.see(torch.zeros(1, 3, 8, 8)).features.shape[1]  # some have a layer before the head

    def see(self, images: Tensor) -> Seen:
        def look(x: Tensor) -> Seen:
            seen = self.model.forward_features(_scaled(x, self.size, self.resize, self.mean, self.std))
            logits = self.model.forward_head(seen).float().cpu() if self.model.num_classes > 0 else None
            return Seen(self.model.forward_head(seen, pre_logits=True).flatten(1).float().cpu(), logits)

        return in_batches(images, look)


def _scaled(images: Tensor, size: tuple[int, ...], resize: str, mean: Tensor, std: Tensor) -> Tensor:
    mode = resize if resize in ("bilinear", "bicubic") else "bicubic"
    x = F.interpolate((in_colour(images) + 1) / 2, size, mode=mode, antialias=True).clamp(0, 1)
    return ((x - mean) / std).to(device())


class Clip:
    """A CLIP model of a local folder, whose weights are safetensors: its projected embeddings."""

    def __init__(self, folder: Path) -> None:
        with IMPORTING:
            import transformers

            clip: Any = transformers
            models, processors = clip.CLIPModel, clip.AutoProcessor
        try:
            self.digest = folder_digest(folder)
            self.model = models.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.processor = processors.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise PlaceInvalid("extractor", str(folder), "is no CLIP model", _words(error)) from error
        self.model.eval().to(device())
        self.name = f"clip-{self.digest[:8]}"
        self.width = int(self.model.config.projection_dim)

    def see(self, images: Tensor) -> Seen:
        def look(x: Tensor) -> Seen:
            pictures = [as_bytes(each).permute(1, 2, 0).numpy() for each in in_colour(x)]
            told = self.processor(images=pictures, return_tensors="pt").to(device())
            return Seen(self.model.get_image_features(**told).pooler_output.float().cpu(), None)

        return in_batches(images, look)

    def score(self, features: Tensor, texts: Sequence[str]) -> float:
        """100 · max(cos(image, text), 0), over all images (Hessel et al. 2021). features: as `see` gives."""
        with torch.inference_mode():
            told = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
            words = self.model.get_text_features(**told.to(device())).pooler_output.float().cpu()
        return float(100 * F.cosine_similarity(features, words).clamp(min=0).mean())


def _weights(path: Path) -> dict[str, Any]:
    """A checkpoint's weights by name; what is more than weights is refused before it is run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return next((found[name] for name in WRAPPED if found.get(name) is not None), found)


def _words(error: Exception) -> str:
    """What a library said, on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= LONG else f"{words[: LONG - 1]}…"

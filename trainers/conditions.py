"""Where the picture of a spatial condition comes from: computed, given as a map, or drawn by a model.

A condition's record, which a task carries, is JSON:

    {"name": "canny", "channels": 1, "source": "canny", "low": 100, "high": 200}
    {"name": "depth", "channels": 1, "source": "maps"}                      beside the dataset's images
    {"name": "depth", "channels": 1, "source": "model", "digest": …}        a transformers model on disk
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from affinery.errors import ConfigInvalid, PlaceInvalid, UnknownName
from affinery.importing import IMPORTING
from affinery.tensor_files import read_json

CHANNELS = {"canny": 1, "hed": 1, "depth": 1, "segmentation": 3}
PIPELINES = {"depth": "depth-estimation", "segmentation": "image-segmentation"}
ARCHITECTURES = {"depth": "DepthEstimation", "segmentation": "Segmentation"}
"""How transformers names the models of a purpose: `…For…DepthEstimation`."""
LOW, HIGH = 100, 200

Maker = Callable[[np.ndarray], np.ndarray]
"""(C, H, W) bytes of an image → (C', H, W) bytes of its condition."""


def condition_record(
    name: str, low: int | None = None, high: int | None = None, model: Path | None = None
) -> dict[str, Any]:
    """A condition as a task carries it. Raises UnknownName or ConfigInvalid.

    low, high: canny's thresholds; model: a folder that a transformers pipeline reads; without one, every
    condition but canny is taken from the dataset's maps.
    """
    if name not in CHANNELS:
        raise UnknownName("condition", name, CHANNELS)
    record: dict[str, Any] = {"name": name, "channels": CHANNELS[name]}
    if name == "canny":
        if model is not None:
            raise ConfigInvalid("condition", "canny is computed, not drawn by a model.")
        return record | {"source": "canny"} | _thresholds(low, high)
    if low is not None or high is not None:
        raise ConfigInvalid("condition", f"{name} has no thresholds; canny has.")
    if model is None:
        return record | {"source": "maps"}
    if name not in PIPELINES:
        raise ConfigInvalid("condition", f"no transformers pipeline draws {name}; give maps in the dataset.")
    _check_purpose(name, model)
    return record | {"source": "model", "folder": str(model.absolute()), "digest": folder_digest(model)}


def _check_purpose(name: str, folder: Path) -> None:
    """Whether a model draws what it is to draw; a pipeline itself would take any and fail later."""
    try:
        made_for = read_json((folder / "config.json").read_bytes())["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise PlaceInvalid(
            "condition", str(folder), "is no model folder: its config.json names no architecture", ""
        ) from error
    if not isinstance(made_for, str) or not made_for.endswith(ARCHITECTURES[name]):
        raise PlaceInvalid("condition", str(folder), f"holds {made_for}, no model that draws {name}", "")


def _thresholds(low: int | None, high: int | None) -> dict[str, int]:
    found = {"low": LOW if low is None else low, "high": HIGH if high is None else high}
    if not 0 <= found["low"] <= found["high"] <= 1000:
        raise ConfigInvalid("condition", f"canny's thresholds {found} are not 0 ≤ low ≤ high ≤ 1000.")
    return found


def published(condition: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A condition as an adapter says it: where this machine keeps a model is nobody else's concern."""
    if condition is None:
        return None
    return {name: value for name, value in condition.items() if name != "folder"}


def folder_digest(folder: Path) -> str:
    """sha-256 over a model folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def maker(condition: Mapping[str, Any]) -> Maker:
    """What draws a condition from an image. Raises ConfigInvalid where it has to come with the dataset."""
    if condition["source"] == "canny":
        return lambda image: canny(image, condition["low"], condition["high"])
    if "folder" in condition:
        return _pipeline(condition)
    raise ConfigInvalid("condition", f"{condition['name']} is not drawn from pictures here; give its map.")


def canny(image: np.ndarray, low: int = LOW, high: int = HIGH) -> np.ndarray:
    """Edges (Canny 1986), white on black. image: (C, H, W) bytes → (1, H, W) bytes"""
    import cv2

    grey = image[0] if len(image) == 1 else cv2.cvtColor(image.transpose(1, 2, 0), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.Canny(np.ascontiguousarray(grey), low, high), np.uint8)[None]


def _pipeline(condition: Mapping[str, Any]) -> Maker:
    """A model of a local folder, whose weights are safetensors. Nothing is ever downloaded."""
    folder = Path(condition["folder"])
    if not folder.is_dir():
        raise PlaceInvalid("condition", str(folder), "is not there any more", "")
    if folder_digest(folder) != condition["digest"]:
        raise PlaceInvalid("condition", str(folder), "is not the one that the task was given", "")
    with IMPORTING:
        import transformers

        pipeline: Any = transformers.pipeline
    try:
        draw = pipeline(
            PIPELINES[condition["name"]],
            model=str(folder),
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError) as error:
        name = condition["name"]
        raise PlaceInvalid("condition", str(folder), f"is no model that draws {name}", str(error)) from error
    paint = _depth if condition["name"] == "depth" else _segments
    return lambda image: paint(draw, image)


def _depth(draw: Any, image: np.ndarray) -> np.ndarray:
    """Nearest white, farthest black, whatever the model's unit. → (1, H, W)"""
    import torch.nn.functional as F

    found = draw(_picture(image))["predicted_depth"].float().reshape(1, 1, -1)
    side = round(found.shape[-1] ** 0.5)
    depth = F.interpolate(found.reshape(1, 1, side, -1), image.shape[1:], mode="bicubic")[0]
    span = float(depth.max() - depth.min()) or 1.0
    return np.asarray(((depth - depth.min()) / span * 255).round().byte().numpy())


def _segments(draw: Any, image: np.ndarray) -> np.ndarray:
    """Each class in its colour, what no class claims black. → (3, H, W)"""
    numbers = draw.model.config.label2id
    painted = np.zeros((3, *image.shape[1:]), np.uint8)
    for segment in draw(_picture(image)):
        inside = np.asarray(segment["mask"]) > 127
        painted[:, inside] = np.array(colour(int(numbers.get(segment["label"], 0))))[:, None]
    return painted


def colour(label: int) -> tuple[int, int, int]:
    """A class's colour: hues a golden angle apart, so that the first few differ most."""
    hue = label * 0.61803398875 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0 - 0.35 * (label // 8 % 3) / 2)
    return round(red * 255), round(green * 255), round(blue * 255)


def _picture(image: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("RGB")

"""The papers' datasets, from folders of the user's in the layouts in which they are given out.

    cub        CUB_200_2011/         images.txt, classes.txt, image_class_labels.txt, images/
    flowers    flowers-102/          imagelabels.mat, jpg/image_00001.jpg …
    ffhq       ffhq/                 any tree of pictures, such as images1024x1024/00000/00000.png
    caltech    101_ObjectCategories/ a folder a class; BACKGROUND_Google is left out
    coco       coco/                 train2017/, annotations/captions_train2017.json

All of a dataset is read, whatever its makers keep apart. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from affinery.errors import ConfigInvalid

PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Picture:
    """label: its class; name: its path in the folder; text: its caption."""

    label: str
    name: str
    text: str | None = None


def cub(folder: Path) -> Iterator[Picture]:
    """CUB-200-2011: classes like 001.Black_footed_Albatross."""
    classes, labels = (_pairs(folder / name) for name in ("classes.txt", "image_class_labels.txt"))
    for number, name in _pairs(folder / "images.txt").items():
        yield Picture(classes[labels[number]], f"images/{name}")


def flowers(folder: Path) -> Iterator[Picture]:
    """Oxford Flowers 102: a class number an image, in a file of MATLAB's."""
    labels = loadmat(_there(folder / "imagelabels.mat"))["labels"].ravel()
    for number, label in enumerate(labels, 1):
        yield Picture(f"{int(label):03d}", f"jpg/image_{number:05d}.jpg")


def ffhq(folder: Path) -> Iterator[Picture]:
    """Faces without classes: one for all."""
    for path in _pictures(folder):
        yield Picture("face", path)


def caltech(folder: Path) -> Iterator[Picture]:
    for path in _pictures(folder):
        label, _, _ = path.partition("/")
        if label != "BACKGROUND_Google":
            yield Picture(label, path)


def coco(folder: Path) -> Iterator[Picture]:
    """Each image with the first of its captions."""
    annotations = _there(folder / "annotations" / "captions_train2017.json")
    raw = json.loads(annotations.read_text(encoding="utf-8"))
    captions: dict[int, str] = {}
    for one in sorted(raw["annotations"], key=lambda each: each["id"]):
        captions.setdefault(one["image_id"], one["caption"].strip())
    for image in raw["images"]:
        yield Picture("picture", f"train2017/{image['file_name']}", captions.get(image["id"]))


def _pairs(path: Path) -> dict[str, str]:
    """Lines of a number and a word."""
    lines = _there(path).read_text(encoding="utf-8").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def _pictures(folder: Path) -> Iterator[str]:
    for path in sorted(_there(folder).rglob("*")):
        if path.suffix.lower() in PICTURES and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()


def _there(path: Path) -> Path:
    if not path.exists():
        raise ConfigInvalid("data", f"{path} is missing; unpack the dataset there as it is given out.")
    return path


@dataclass(frozen=True)
class Layout:
    """folder: what the dataset unpacks to. licence: as its makers state it."""

    folder: str
    read: Callable[[Path], Iterator[Picture]]
    licence: str
    source: str


LAYOUTS: Mapping[str, Layout] = {
    "cub": Layout("CUB_200_2011", cub, "images: non-commercial research", "Caltech-UCSD Birds 200, 2011"),
    "flowers": Layout("flowers-102", flowers, "not stated; research", "Oxford 102 Category Flower Dataset"),
    "ffhq": Layout("ffhq", ffhq, "CC BY-NC-SA 4.0 (images: of their authors)", "Flickr-Faces-HQ"),
    "caltech": Layout("101_ObjectCategories", caltech, "CC BY 4.0", "Caltech 101"),
    "coco": Layout("coco", coco, "annotations CC BY 4.0; images: of their authors", "COCO 2017"),
}


def listed(data: Path, name: str) -> tuple[list[tuple[Picture, Path]], Layout]:
    """A dataset's pictures, class by class, and where they lie. Raises ConfigInvalid."""
    layout = LAYOUTS[name]
    folder = _there(data / layout.folder)
    try:
        found = sorted(layout.read(folder), key=lambda picture: (picture.label, picture.name))
    except (LookupError, TypeError, ValueError, MatReadError) as error:
        told = f"{folder} is not as {layout.source} is given out: {type(error).__name__}: {error}."
        raise ConfigInvalid("data", told) from error
    if not found:
        raise ConfigInvalid("data", f"{folder} holds no picture.")
    return [(picture, _there(folder / picture.name)) for picture in found], layout

"""Builds the three datasets that come with Affinery, each a zip of class folders with its licence and source.

    python scripts/prepare_datasets.py --fonts DIR --animals WHEEL --out affinery_app/assets/datasets

    digits    scikit-learn's 1,797 handwritten digits, 8 × 8
    letters   A to J in free typefaces: DIR holds Debian's fonts-* packages, each unpacked in a folder
              of its name
    animals   silhouettes from the wheel of the PyPI package animal-mnist 0.4 (MIT), six of its ten animals

Everything is bright on black.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJ"
FACES_A_PACKAGE = 3
ANIMALS = {1: "bird", 2: "cat", 3: "cow", 5: "elephant", 6: "giraffe", 9: "zebra"}
IMAGES_AN_ANIMAL = 300
ODD_FACES = re.compile(
    r"Math|Symbol|Initial|Ornament|Signage|Thin|ExtraLight|UltraLight|Hairline|Swash|Oblique|Italic|It$|Unicase"
    r"|_K$|Keys|Smallcap|SC-|SmCp|VF|\[wght|Variable|Light$|ital",
)
ODD_PACKAGES = {
    "fonts-adf-ikarius",
    "fonts-adf-solothurn",
    "fonts-lobstertwo",
    "fonts-paratype",
    "fonts-urw-base35",
    "fonts-breip",
    "fonts-beteckna",
    "fonts-femkeklaver",
    "fonts-isabella",
    "fonts-opendyslexic",
    "fonts-dustin",
    "fonts-sjfonts",
    "fonts-tomsontalks",
    "fonts-essays1743",
    "fonts-apropal",
    "fonts-bajaderka",
    "fonts-havana",
    "fonts-babelstone-modern",
    "fonts-humor-sans",
    "fonts-ecolier-court",
    "fonts-rufscript",
    "fonts-radisnoir",
    "fonts-okolaks",
    "fonts-klaudia-berenika",
    "fonts-gnutypewriter",
    "fonts-eurofurence",
}
SOURCES = {
    "digits": ("CC BY 4.0", "UCI Optical Recognition of Handwritten Digits, as in scikit-learn"),
    "letters": ("free font licences", "capitals drawn from free typefaces of Debian"),
    "animals": ("MIT", "PyPI package animal-mnist 0.4"),
}


class Entry:
    """One image of a dataset: its class and its pixels, (H, W) bytes."""

    def __init__(self, label: str, pixels: np.ndarray) -> None:
        self.label, self.pixels = label, pixels


def digits() -> tuple[list[Entry], str]:
    from sklearn.datasets import load_digits

    data = load_digits()
    entries = [
        Entry(str(label), np.round(image * 255 / 16).astype(np.uint8))
        for image, label in zip(data.images, data.target, strict=True)
    ]
    licence = (
        "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository (1998).\n"
        "Licensed under the Creative Commons Attribution 4.0 International licence (CC BY 4.0).\n"
        "This is the test part, as scikit-learn (BSD-3-Clause) ships it: 1,797 images of 8 × 8 pixels,\n"
        "their 17 grey levels spread over 0 to 255; nothing else was changed.\n"
    )
    return entries, licence


def faces(folder: Path) -> Iterator[tuple[str, Path]]:
    """(package, font file): upright text faces, a few of each package."""
    for package in sorted(path for path in folder.iterdir() if path.name not in ODD_PACKAGES):
        fonts = sorted(path for path in package.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
        upright = [path for path in fonts if not path.is_symlink() and not ODD_FACES.search(path.stem)]
        yield from ((package.name, path) for path in upright)


def capital(font_file: Path, letter: str, box: int = 32, fine: int = 8) -> np.ndarray:
    """A capital, drawn large and reduced: (box, box) bytes, centred, capitals about 24 pixels high."""
    probe = ImageFont.truetype(str(font_file), 400)
    _, top, _, bottom = probe.getbbox("H")
    left, upper, right, lower = probe.getbbox(letter)
    size = 400 * 24 * fine / max(1, bottom - top)
    size *= min(
        1, 27 * fine * 400 / max(1, (right - left) * size), 28 * fine * 400 / max(1, (lower - upper) * size)
    )
    font = ImageFont.truetype(str(font_file), round(size))
    left, upper, right, lower = font.getbbox(letter)
    canvas = Image.new("L", (box * fine, box * fine))
    place = ((box * fine - right + left) / 2 - left, (box * fine - lower + upper) / 2 - upper)
    ImageDraw.Draw(canvas).text(place, letter, fill=255, font=font)
    return np.asarray(canvas.resize((box, box), Image.Resampling.BOX))


def is_usable(font_file: Path) -> bool:
    """Whether a face is upright and has all the letters."""
    from fontTools.ttLib import TTFont

    with TTFont(font_file, lazy=True) as font:
        return not font["post"].italicAngle and all(ord(letter) in font.getBestCmap() for letter in LETTERS)


def licence_of(folder: Path, package: str) -> str:
    """The licences that a package's Debian copyright file names."""
    named: set[str] = set()
    for path in folder.joinpath(package).glob("usr/share/doc/*/copyright*"):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
        if "General Public License v.2 with the exceptions set forth below" in text:
            named.add("GPL-2 with font exception")
        named |= {line.strip() for line in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)}
        if not named and "Open Font License" in text:
            named.add("OFL")
    return ", ".join(sorted(named)) or "see the package's copyright file"


def letters(folder: Path) -> tuple[list[Entry], str]:
    entries: list[Entry] = []
    used: dict[str, list[str]] = {}
    seen: set[bytes] = set()
    for package, font_file in faces(folder):
        if len(used.get(package, [])) >= FACES_A_PACKAGE or not is_usable(font_file):
            continue
        drawn = [capital(font_file, letter) for letter in LETTERS]
        key = b"".join(image.tobytes() for image in drawn)
        if key in seen or min(int(image.max()) for image in drawn) < 128:
            continue
        seen.add(key)
        used.setdefault(package, []).append(font_file.name)
        entries += [Entry(letter, image) for letter, image in zip(LETTERS, drawn, strict=True)]
    lines = [
        "Capitals drawn from these typefaces, all of Debian's main archive and so free software.",
        "Package (licences that its copyright file names): files",
        "",
    ]
    lines += [
        f"{package} ({licence_of(folder, package)}): {', '.join(names)}" for package, names in used.items()
    ]
    return entries, "\n".join(lines) + "\n"


ARRAY_PARTS = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}


class ArraysOnly(pickle.Unpickler):
    """Reads pickled NumPy arrays, and refuses everything else that a pickle could ask for."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" and name in ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def animals(wheel: Path) -> tuple[list[Entry], str]:
    with zipfile.ZipFile(wheel) as archive:

        def array(name: str) -> np.ndarray:
            packed = archive.read(f"animal_mnist/data/Animal_MNIST/{name}_version_3.gz")
            return np.asarray(ArraysOnly(io.BytesIO(gzip.decompress(packed))).load())

        pixels, labels = array("animal_data").reshape(-1, 28, 28), array("animal_label").ravel()
        licence = archive.read("animal_mnist-0.4.dist-info/licenses/LICENSE").decode()
    pixels = (pixels * (255 if pixels.max() <= 1 else 1)).astype(np.uint8)
    first = int(labels.min())
    entries = [
        Entry(name, pixels[row])
        for index, name in ANIMALS.items()
        for row in np.flatnonzero(labels == index + first)[:IMAGES_AN_ANIMAL]
    ]
    return entries, f"From the PyPI package animal-mnist 0.4; its licence:\n\n{licence}"


def write(out: Path, name: str, entries: list[Entry], licence: str) -> None:
    """A zip of class_name/NNNN.png with its licence and a README; the same images give the same bytes."""
    counts: dict[str, int] = {}
    with zipfile.ZipFile(out / f"{name}.zip", "w", zipfile.ZIP_STORED) as archive:

        def put(path: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), content)

        put("LICENCE.txt", licence.encode())
        terms, source = SOURCES[name]
        height, width = entries[0].pixels.shape
        about = f"{len(entries)} greyscale images, {width} x {height}, bright on black, one folder a class."
        put("README.md", f"# {name}\n\n{about}\n\n{source}. {terms}; see LICENCE.txt.\n".encode())
        for entry in entries:
            buffer = io.BytesIO()
            Image.fromarray(entry.pixels).save(buffer, "PNG", optimize=True)
            put(f"{entry.label}/{counts.get(entry.label, 0):04d}.png", buffer.getvalue())
            counts[entry.label] = counts.get(entry.label, 0) + 1
    (out / f"{name}.LICENCE.txt").write_text(licence, encoding="utf-8")
    print(f"{name}: {len(entries)} images, {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("fonts", "animals", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = {"digits": digits(), "letters": letters(args.fonts), "animals": animals(args.animals)}
    for name, (entries, licence) in made.items():
        write(args.out, name, entries, licence)
    index = {name: {"licence": licence, "source": source} for name, (licence, source) in SOURCES.items()}
    (args.out / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Packs hold a dataset to the byte; what is decoded from them is what a person sees, whatever the format."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from trainers.data import HELD_OUT_PERCENT, is_held_out, load_split, square
from trainers.errors import DatasetChanged
from trainers.packs import IMAGES, MANIFEST, PackWriter, read_manifest, verify_pack


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    rng = np.random.default_rng(seed)
    return png(Image.fromarray(rng.integers(0, 256, (size[1], size[0]), np.uint8)))


def pack(folder: Path, classes: dict[str, list[bytes]]) -> Path:
    folder.mkdir(parents=True)
    with PackWriter(folder, tuple(classes), "CC0", "made here") as writer:
        for label, contents in enumerate(classes.values()):
            for i, content in enumerate(contents):
                with Image.open(io.BytesIO(content)) as image:
                    writer.add(
                        content,
                        label,
                        extension="png",
                        width=image.width,
                        height=image.height,
                        mode=image.mode,
                        source_name=f"class {label}/{i}.png",
                    )
        writer.finish()
    return folder


TWO = {"zero": [picture(i) for i in range(3)], "eins ü": [picture(i + 9) for i in range(2)]}


def test_the_same_images_always_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = pack(tmp_path / "1", TWO), pack(tmp_path / "2", TWO)
    for name in (IMAGES, MANIFEST):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_packs_digest_is_that_of_its_manifest(tmp_path: Path) -> None:
    folder = pack(tmp_path / "1", TWO)
    manifest = read_manifest(folder)
    assert manifest.digest == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert verify_pack(folder, manifest.digest) == manifest
    assert (manifest.classes, manifest.class_counts) == (("zero", "eins ü"), (3, 2))
    with zipfile.ZipFile(folder / IMAGES) as archive:
        assert [archive.read(image.entry) for image in manifest.images] == [*TWO["zero"], *TWO["eins ü"]]


def test_any_other_image_or_name_gives_another_digest(tmp_path: Path) -> None:
    digests = [
        read_manifest(pack(tmp_path / str(i), classes)).digest
        for i, classes in enumerate(
            [
                TWO,
                {"zero": TWO["zero"], "eins": TWO["eins ü"]},
                {**TWO, "zero": TWO["zero"][::-1]},
                {**TWO, "zero": [*TWO["zero"][:2], picture(77)]},
            ]
        )
    ]
    assert len(set(digests)) == 4


def rewrite(folder: Path, change: dict[str, bytes | None]) -> None:
    """The archive again, with entries replaced, added or (None) left out."""
    with zipfile.ZipFile(folder / IMAGES) as archive:
        entries: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / IMAGES, "w") as archive:
        for name, content in (entries | change).items():
            if content is not None:
                archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"0000/000001.png": picture(5)}, r"class 0/1\.png \(0000/000001\.png\) was changed"),
        ({"0001/000001.png": None}, r"class 1/1\.png \(0001/000001\.png\) was taken out"),
        ({"0001/000002.png": picture(5)}, r"0001/000002\.png was added"),
    ],
)
def test_a_changed_a_missing_and_an_added_image_are_named(
    change: dict[str, bytes | None], says: str, tmp_path: Path
) -> None:
    folder = pack(tmp_path / "1", TWO)
    digest = read_manifest(folder).digest
    rewrite(folder, change)
    with pytest.raises(DatasetChanged, match=says):
        verify_pack(folder, digest)


def test_an_entry_twice_is_refused(tmp_path: Path) -> None:
    """Which of the two is read is up to the reader: the one that was checked, or the other."""
    folder = pack(tmp_path / "1", TWO)
    digest = read_manifest(folder).digest
    with zipfile.ZipFile(folder / IMAGES, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("0000/000001.png", picture(5))
    with pytest.raises(DatasetChanged, match=r"0000/000001\.png"):
        verify_pack(folder, digest)


def test_a_byte_changed_outside_every_image_is_found_too(tmp_path: Path) -> None:
    folder = pack(tmp_path / "1", TWO)
    digest = read_manifest(folder).digest
    content = bytearray((folder / IMAGES).read_bytes())
    content[10] ^= 1  # the first entry's time, which no reader looks at
    (folder / IMAGES).write_bytes(content)
    with pytest.raises(DatasetChanged, match="outside its images"):
        verify_pack(folder, digest)


def test_an_edited_manifest_a_missing_archive_and_a_torn_one_are_told_apart(tmp_path: Path) -> None:
    folder = pack(tmp_path / "1", TWO)
    digest = read_manifest(folder).digest
    whole = (folder / IMAGES).read_bytes()
    (folder / IMAGES).write_bytes(whole[:-40])
    with pytest.raises(DatasetChanged, match=r"images\.zip is damaged"):
        verify_pack(folder, digest)
    (folder / IMAGES).write_bytes(whole[:200].replace(whole[60:70], b"0123456789") + whole[200:])
    with pytest.raises(DatasetChanged, match=r"damaged|changed"):
        verify_pack(folder, digest)
    (folder / IMAGES).unlink()
    with pytest.raises(DatasetChanged, match=r"images\.zip is missing"):
        verify_pack(folder, digest)
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace("CC0", "mine"))
    with pytest.raises(DatasetChanged, match=r"manifest\.json was edited"):
        verify_pack(folder, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "3",
        "[" * 100_000,
        '{"schema": 2}',
        '{"schema": 1}',
        '{"schema": 1, "classes": null}',
        '{"schema":1,"classes":["a"],"class_counts":[1],"images":[3],"licence":"","source":""}',
        '{"schema":1,"classes":["a"],"class_counts":[1],"images":[{"entry":"x"}],"licence":"","source":""}',
    ],
)
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DatasetChanged, match=r"manifest\.json|manifest has schema 2"):
        read_manifest(tmp_path)


def test_no_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetChanged, match=r"manifest\.json is missing"):
        read_manifest(tmp_path)


def test_an_image_stays_on_its_side_when_the_dataset_grows(tmp_path: Path) -> None:
    few = [picture(i) for i in range(60)]
    more = [picture(i + 1000) for i in range(30)]
    small = load_split(pack(tmp_path / "small", {"a": few, "b": more[:15]}), 8, 1)
    large = load_split(pack(tmp_path / "large", {"a": [*more[15:], *few], "b": more[:15], "c": more}), 8, 1)

    def found(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert found(small.held_out.images) <= found(large.held_out.images)
    assert found(small.train.images) <= found(large.train.images)
    assert not found(large.train.images) & found(large.held_out.images)


def test_about_fifteen_in_a_hundred_are_held_out_by_their_own_bytes() -> None:
    held = sum(is_held_out(hashlib.sha256(str(i).encode()).hexdigest()) for i in range(10_000))
    assert held / 100 == pytest.approx(HELD_OUT_PERCENT, abs=1)


def test_a_class_whose_images_would_all_be_held_out_is_learnt_from(tmp_path: Path) -> None:
    contents = [picture(i) for i in range(100)]
    held = [content for content in contents if is_held_out(hashlib.sha256(content).hexdigest())]
    split = load_split(
        pack(tmp_path / "1", {"a": held[:2], "b": [picture(i) for i in range(200, 230)]}), 8, 1
    )
    assert set(split.train.labels.tolist()) == {0, 1}
    assert int((split.train.labels == 0).sum()) == 2


def test_images_and_labels_stay_together(tmp_path: Path) -> None:
    shades = {str(n): [png(Image.new("L", (8, 8), 20 * n + i)) for i in range(8)] for n in range(4)}
    split = load_split(pack(tmp_path / "1", shades), 8, 1)
    for images in (split.train, split.held_out):
        assert torch.equal(images.images[:, 0, 0, 0] // 20, images.labels)
    assert len(split.train.labels) + len(split.held_out.labels) == 32
    assert float(split.train.unit().min()) >= -1
    assert float(split.train.unit().max()) <= 1


def grey(image: Image.Image, size: int = 4) -> np.ndarray:
    pixels: np.ndarray = square(image, size, 1)[0]
    return pixels


def flat(image: Image.Image) -> list[int]:
    """The one colour that all pixels have, in three channels."""
    pixels = square(image, 4, 3)
    assert bool((pixels == pixels[:, :1, :1]).all())
    return [int(n) for n in pixels[:, 0, 0]]


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_what_is_transparent_counts_as_black() -> None:
    assert flat(Image.new("RGBA", (9, 9), (200, 100, 50, 0))) == [0, 0, 0]
    assert flat(Image.new("RGBA", (9, 9), (200, 100, 50, 128))) == [100, 50, 25]
    assert flat(Image.new("LA", (9, 9), (200, 0))) == [0, 0, 0]
    assert flat(Image.new("LA", (9, 9), (200, 255))) == [200, 200, 200]


def test_a_palette_gives_its_colours_and_its_transparent_entry_black() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 250, 10, 20])
    assert flat(reopened(image, "PNG")) == [250, 10, 20]
    assert flat(reopened(image, "PNG", transparency=1)) == [0, 0, 0]
    assert flat(reopened(image, "GIF")) == [250, 10, 20]


def test_a_colour_declared_transparent_counts_as_black() -> None:
    assert flat(reopened(Image.new("RGB", (8, 8), (9, 8, 7)), "PNG", transparency=(9, 8, 7))) == [0, 0, 0]
    assert flat(reopened(Image.new("RGB", (8, 8), (9, 8, 7)), "PNG", transparency=(1, 1, 1))) == [9, 8, 7]


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    ramp = np.array([[0, 257, 32_896, 65_535]] * 4, np.uint16)
    for kind in ("PNG", "TIFF"):
        image = reopened(Image.fromarray(ramp), kind)
        assert image.mode.startswith("I")
        assert grey(image)[0].tolist() == [0, 1, 128, 255]
    assert grey(Image.fromarray(ramp.astype(np.int32)))[0].tolist() == [0, 1, 128, 255]


def test_sixteen_bits_with_a_transparent_value_are_read() -> None:
    image = Image.fromarray(np.full((4, 4), 32_896, np.uint16))
    image.info["transparency"] = 5
    assert grey(image)[0, 0] == 128


def test_floating_point_greys_run_from_zero_to_one() -> None:
    values = np.array([[0.0, 0.5, 1.0, float("nan")]] * 4, np.float32)
    assert grey(reopened(Image.fromarray(values), "TIFF"))[0].tolist() == [0, 128, 255, 0]


def test_cmyk_gives_its_colour() -> None:
    image = reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert image.mode == "CMYK"
    red, green, blue = flat(image)
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBa", "LA", "La", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_every_mode_is_read(mode: str) -> None:
    image = Image.new(mode, (6, 5))
    assert square(image, 4, 1).shape == (1, 4, 4)
    assert square(image, 4, 3).shape == (3, 4, 4)


def test_lab_is_read() -> None:
    profile = ImageCms.createProfile("LAB")
    assert profile is not None
    assert square(Image.new("LAB", (6, 5)), 4, 3).shape == (3, 4, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_undone(orientation: int) -> None:
    """Upright, the upper left corner is white; the file holds the picture as the camera was held."""
    upright = Image.new("L", (8, 8))
    upright.paste(255, (0, 0, 4, 4))
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = grey(reopened(stored, "PNG", exif=exif.tobytes()), 8)
    assert np.array_equal(pixels, np.asarray(upright))


BROKEN = {
    "a rational as a name": b"\x01\x0f\0\x05\0\0\0\x02\0\0\0\x08",
    "a float as a width": b"\x01\x00\0\x0b\0\0\0\x01\x7f\xc0\0\0",
}


@pytest.mark.parametrize("entry", BROKEN.values(), ids=list(BROKEN))
def test_a_cameras_rotation_is_undone_whatever_else_its_exif_says(entry: bytes) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + entry + bytes(4)
    stored = Image.new("L", (8, 8))
    stored.paste(255, (0, 4, 4, 8))
    pixels = grey(reopened(stored, "JPEG", exif=exif, quality=100), 8)
    assert pixels[:3, :3].min() > 240
    assert pixels[5:, 5:].max() < 15
    assert pixels[:3, 5:].max() < 15


def test_the_middle_square_is_taken() -> None:
    wide = Image.new("L", (30, 10))
    wide.paste(200, (10, 0, 20, 10))
    assert (grey(wide) == 200).all()
    assert (grey(wide.transpose(Image.Transpose.ROTATE_90)) == 200).all()


def test_an_image_of_one_pixel_is_enlarged() -> None:
    assert (grey(Image.new("L", (1, 1), 77)) == 77).all()
    assert (grey(Image.new("L", (1, 50), 77)) == 77).all()


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 200)]
    moving = reopened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (grey(moving) == 10).all()


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    raw = json.loads((pack(tmp_path / "1", TWO) / MANIFEST).read_bytes())
    assert raw["images"][0] == {
        "entry": "0000/000000.png",
        "label": 0,
        "sha256": hashlib.sha256(TWO["zero"][0]).hexdigest(),
        "width": 8,
        "height": 8,
        "mode": "L",
        "source_name": "class 0/0.png",
    }


def test_what_was_decoded_once_is_mapped_from_the_cache_and_not_decoded_again(tmp_path: Path) -> None:
    many = {"a": [picture(i) for i in range(30)], "b": [picture(i + 90) for i in range(10)]}
    folder, cache = pack(tmp_path / "pack", many), tmp_path / "cache"
    plain, first = load_split(folder, 4, 3), load_split(folder, 4, 3, cache=cache)
    [file] = cache.iterdir()
    before = file.read_bytes()
    with zipfile.ZipFile(folder / IMAGES, "w"):
        pass  # nothing is left in it to decode
    again = load_split(folder, 4, 3, cache=cache)
    for split in (first, again):
        for ours, expected in ((split.train, plain.train), (split.held_out, plain.held_out)):
            assert len(expected.images) > 0
            assert torch.equal(ours.images, expected.images)
            assert torch.equal(ours.labels, expected.labels)
    again.train.images.zero_()
    assert file.read_bytes() == before
    with pytest.raises(KeyError):
        load_split(folder, 8, 3, cache=cache)  # another size is decoded anew
    assert list(cache.iterdir()) == [file]

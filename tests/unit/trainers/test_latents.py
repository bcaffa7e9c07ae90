"""Latents are encoded once a dataset, image size and VAE, and are never those of anything else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from affinery.backbones.contract import Backbone
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny
from tests.tiny_unets import built, latent_spec, unet_spec
from trainers.latents import BATCH, KEY, cached, latents_key, vae_digest

COUNT = 2 * BATCH + 3


@pytest.fixture
def backbone() -> Backbone:
    return built(latent_spec())


def pixels(seed: int = 0, count: int = COUNT) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def file_in(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


class Counted:
    """How many images were encoded."""

    def __init__(self) -> None:
        self.images = 0
        self.reports: list[tuple[int, int]] = []

    def __call__(self, done: int, of: int) -> None:
        self.images += min(BATCH, done - (self.reports[-1][0] if self.reports else 0))
        self.reports.append((done, of))


def test_latents_are_encoded_once_and_read_back_the_same(backbone: Backbone, tmp_path: Path) -> None:
    key, count = latents_key(backbone, "d" * 64), Counted()
    first = cached(backbone, pixels(), tmp_path / "latents", key, count)
    expected = torch.cat([backbone.encode(part.float() / 127.5 - 1) for part in pixels().split(BATCH)])
    assert torch.equal(first, expected)
    assert first.shape == (COUNT, *backbone.spec.latent_shape())
    assert count.reports == [(BATCH, COUNT), (2 * BATCH, COUNT), (COUNT, COUNT)]
    again = cached(backbone, pixels(), tmp_path / "latents", key, count)
    assert torch.equal(again, first)
    assert count.images == COUNT


def test_another_dataset_part_size_or_vae_has_another_key(backbone: Backbone) -> None:
    other = built(latent_spec(), seed=1)
    larger = built(latent_spec(image_size=32))
    keys = {
        latents_key(backbone, "d" * 64),
        latents_key(backbone, "e" * 64),
        latents_key(backbone, "d" * 64, part="held out"),
        latents_key(other, "d" * 64),
        latents_key(larger, "d" * 64),
    }
    assert len(keys) == 5


def test_the_vaes_digest_is_that_of_its_weights_and_settings_not_of_the_denoiser(backbone: Backbone) -> None:
    digest = vae_digest(backbone)
    backbone.class_table.add_(1)
    assert vae_digest(backbone) == digest
    backbone.vae.quant_conv.bias[0] += 1e-3
    assert vae_digest(backbone) != digest
    with pytest.raises(ConfigInvalid, match="has no VAE"):
        vae_digest(built(unet_spec()))


def test_two_datasets_stand_beside_each_other(backbone: Backbone, tmp_path: Path) -> None:
    one = cached(backbone, pixels(0), tmp_path, latents_key(backbone, "a"))
    other = cached(backbone, pixels(1), tmp_path, latents_key(backbone, "b"))
    assert not torch.equal(one, other)
    assert torch.equal(cached(backbone, pixels(0), tmp_path, latents_key(backbone, "a")), one)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("harm", ["cut off", "empty", "of another key", "of another shape", "no safetensors"])
def test_a_torn_or_foreign_file_is_encoded_anew(harm: str, backbone: Backbone, tmp_path: Path) -> None:
    key, count = latents_key(backbone, "d"), Counted()
    expected = cached(backbone, pixels(), tmp_path, key).clone()
    file = file_in(tmp_path)
    if harm == "cut off":
        file.write_bytes(file.read_bytes()[:-4])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "no safetensors":
        file.write_bytes(b"\x89PNG" * 100)
    else:
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        if harm == "of another shape":
            tensors["latents"] = tensors["latents"][:-1]
        save_file(tensors, file, {KEY: key if harm == "of another shape" else "other"})
    assert torch.equal(cached(backbone, pixels(), tmp_path, key, count), expected)
    assert count.images == COUNT
    assert file_in(tmp_path) == file


def test_latents_that_were_read_may_be_changed_without_changing_the_file(
    backbone: Backbone, tmp_path: Path
) -> None:
    key = latents_key(backbone, "d")
    first = cached(backbone, pixels(), tmp_path, key)
    before = file_in(tmp_path).read_bytes()
    first.add_(1)
    assert file_in(tmp_path).read_bytes() == before
    assert torch.equal(cached(backbone, pixels(), tmp_path, key) + 1, first)


def test_an_encoding_that_fails_leaves_nothing(backbone: Backbone, tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(backbone, pixels(), tmp_path, latents_key(backbone, "d"), stop)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_at_once_both_end_with_the_whole_file(backbone: Backbone, tmp_path: Path) -> None:
    key, meet = latents_key(backbone, "d"), threading.Barrier(2, timeout=60)
    found: list[Tensor] = []

    def write() -> None:
        def wait_at_first(done: int, of: int) -> None:
            if done == BATCH:
                meet.wait()  # each has begun before the other ends

        found.append(cached(backbone, pixels(), tmp_path, key, wait_at_first))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert torch.equal(found[0], found[1])
    assert torch.equal(cached(backbone, pixels(), tmp_path, key), found[0])
    file_in(tmp_path)


def test_no_images_have_no_latents(backbone: Backbone, tmp_path: Path) -> None:
    assert cached(backbone, pixels(count=0), tmp_path, "key").shape == (0, 4, 8, 8)


def test_a_transformers_latents_are_cached_alike(tmp_path: Path) -> None:
    backbone = built(tiny.spec(image_size=16, channels=3, latent=latent_spec().latent))
    found = cached(backbone, pixels(count=2), tmp_path, latents_key(backbone, "d"))
    assert torch.equal(found, backbone.encode(pixels(count=2).float() / 127.5 - 1))

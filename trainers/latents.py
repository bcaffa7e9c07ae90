"""Images as latents, encoded once and kept on disk: they are the same in every epoch and every run.

A cache file is safetensors: one tensor, and in the metadata the key that says whose latents these are. It is
written beside its place and put there whole, so that two trainings may encode the same dataset at once. What
is torn or of another key is encoded anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from affinery.backbones.contract import Backbone
from affinery.errors import ConfigInvalid
from affinery.tensor_files import NotSafetensors, read_header, written_whole

BATCH = 16  # fixed: a latent's last bits may depend on the batch that it is encoded in
KEY = "affinery.latents"
NAME = "latents"
TYPES = {torch.float32: ("F32", np.float32), torch.uint8: ("U8", np.uint8)}

OnProgress = Callable[[int, int], None]


def vae_digest(backbone: Backbone) -> str:
    """sha-256 over the latent space's facts and the VAE's tensors: the same digest, the same latents."""
    latent = backbone.spec.latent
    if latent is None or backbone.vae is None:
        raise ConfigInvalid("backbone", "it has no VAE, so there are no latents to keep.")
    facts = [latent.channels, latent.factor, latent.scaling, latent.shift, latent.vae]
    return module_digest(f"{KEY}-1\0{json.dumps(facts, sort_keys=True)}\0", backbone.vae)


def module_digest(facts: str, module: nn.Module) -> str:
    """sha-256 over facts and a module's tensors."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}\0{values.dtype}\0{list(values.shape)}\0".encode())
        digest.update(values.data)
    return digest.hexdigest()


def latents_key(
    backbone: Backbone, dataset_digest: str, part: str = "train", image_size: int | None = None
) -> str:
    """What the latents of a part of a dataset depend on: its images, their size, the VAE."""
    return f"{dataset_digest}/{part}/{image_size or backbone.spec.image_size}/{vae_digest(backbone)}"


def cached(
    backbone: Backbone,
    images: Tensor,
    folder: Path,
    key: str,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """The latents of images, from the folder where they were kept there before, else encoded and kept.

    images: (n, channels, H, W) bytes, as `load_split` gives them; key: `latents_key` of them.
    on_progress: called with (images encoded, n).
    → (n, C, h, w) 32-bit floats, mapped from the file: only what is indexed is read. Writing to them changes
    memory only.
    """
    shape = (len(images), *backbone.spec.latent_shape(images.shape[-1]))
    return kept(folder, key, shape, lambda: _batches(backbone, images, on_progress))


def captions(backbone: Backbone, texts: Sequence[str], folder: Path, dataset_digest: str) -> Tensor:
    """Embeddings of captions, made once and kept as latents are. → (n, L, E) 32-bit floats

    dataset_digest: of the dataset whose captions they are.
    """
    text = backbone.spec.text
    if text is None or backbone.text is None:
        raise ConfigInvalid("captions", f"this backbone ({backbone.spec.arch}) has no text encoder.")
    listed = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    facts = [text.length, text.width, text.encoder]
    encoder = module_digest(f"{KEY}-text-1\0{json.dumps(facts, sort_keys=True)}\0", backbone.text)
    key = f"{dataset_digest}/captions/{listed}/{encoder}"

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(texts), BATCH):
            yield backbone.encode_text(texts[start : start + BATCH]).float().cpu()

    return kept(folder, key, (len(texts), text.length, text.width), batches)


def kept(
    folder: Path,
    key: str,
    shape: tuple[int, ...],
    batches: Callable[[], Iterator[Tensor]],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What was kept under a key before; else it is made, batch by batch, and kept. dtype: one of `TYPES`."""
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    found = _mapped(path, key, shape, dtype)
    if found is None:
        _write(path, key, shape, dtype, batches())
        found = _mapped(path, key, shape, dtype)
    if found is None:
        raise OSError(f"{path} is not what was just written to it; is the disk sound?")
    return found


def _batches(backbone: Backbone, images: Tensor, on_progress: OnProgress | None) -> Iterator[Tensor]:
    device = backbone.class_table.device
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH].to(device).float() / 127.5 - 1
        yield backbone.encode(batch).float().cpu()
        if on_progress is not None:
            on_progress(start + len(batch), len(images))


def _mapped(path: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """The latents in a file; None where there is none, or not exactly these."""
    try:
        header = read_header(path)
    except (OSError, NotSafetensors):
        return None
    entry = header.tensors.get(NAME)
    name, numbers = TYPES[dtype]
    if header.metadata.get(KEY) != key or entry is None or (entry.dtype, entry.shape) != (name, shape):
        return None
    if 0 in shape:
        return torch.zeros(shape, dtype=dtype)
    # Copy on write: the file is never changed, and torch need not warn of memory that it must not write to.
    return torch.from_numpy(np.memmap(path, numbers, mode="c", offset=entry.start, shape=shape))


def _write(
    path: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype, batches: Iterator[Tensor]
) -> None:
    """Writes a cache file batch by batch, so that a dataset's latents need not fit into memory."""
    with written_whole(path) as part, part.open("wb") as file:
        _write_header(file, key, shape, dtype)
        for batch in batches:
            file.write(batch.contiguous().numpy().data)


def _write_header(file: BinaryIO, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    entry = {"dtype": TYPES[dtype][0], "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {KEY: key}, NAME: entry}).encode()
    header += b" " * (-len(header) % 8)  # the tensor starts at a multiple of eight, as the format asks
    file.write(len(header).to_bytes(8, "little") + header)

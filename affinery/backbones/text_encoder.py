"""The text encoder of a text-conditional backbone: CLIP and its vocabulary, under `text.` in its file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from affinery.backbones.network_config import check_config
from affinery.errors import ConfigInvalid
from affinery.importing import IMPORTING
from affinery.tensor_files import read_json

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from affinery.backbones.contract import Text

CLIP_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
BYTES_LIMIT = 64_000_000
START, END = "<|startoftext|>", "<|endoftext|>"


class TextEncoder(nn.Module):
    """CLIP's text model (Radford et al. 2021), whose last hidden state conditions the denoiser.

    Its settings are the spec's `text.encoder`: `clip`, the text model's config; `pad`, the token that fills a
    caption up; `vocab_bytes` and `merges_bytes`, the sizes of the two byte tensors that hold the vocabulary:
    the JSON object of pieces and their numbers, and the pairs that merge, a line each.
    """

    def __init__(self, text: Text) -> None:
        super().__init__()
        with IMPORTING:
            from transformers import CLIPTextConfig, CLIPTextModel

        config, sizes = _checked(text)
        self.length = text.length
        self.pad: str = (text.encoder or {})["pad"]
        self.pieces: int = config["vocab_size"]
        # Where a caption ends matters to the pooled output only, which is not used; yet it must be a number.
        ends = {"bos_token_id": self.pieces - 2, "eos_token_id": self.pieces - 1, "pad_token_id": None}
        self.clip = CLIPTextModel(CLIPTextConfig(**config, **ends))
        # This table is in no file, so it must be real where the weights are only sketched on the meta device.
        places = torch.arange(config["max_position_embeddings"], device="cpu")[None]
        self.clip.embeddings.register_buffer("position_ids", places, persistent=False)
        self.register_buffer("vocab", torch.zeros(sizes[0], dtype=torch.uint8))
        self.register_buffer("merges", torch.zeros(sizes[1], dtype=torch.uint8))

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """Raises ConfigInvalid where the vocabulary's bytes are none."""
        vocab, merges = self.get_buffer("vocab"), self.get_buffer("merges")
        return tokenizer(bytes(vocab.cpu().numpy()), bytes(merges.cpu().numpy()), self.pad, self.pieces)

    def forward(self, captions: Sequence[str]) -> Tensor:
        """→ (B, L, E); every caption is cut off or filled up to L tokens, as Stable Diffusion does."""
        encoded = self.tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        state: Tensor = self.clip(encoded.input_ids.to(self.get_buffer("vocab").device)).last_hidden_state
        return state


def _checked(text: Text) -> tuple[dict[str, Any], tuple[int, int]]:
    """→ the text model's config, and the sizes of the vocabulary and the merges. Raises ConfigInvalid."""
    settings = text.encoder or {}
    if settings.keys() != {"clip", "pad", "vocab_bytes", "merges_bytes"}:
        raise ConfigInvalid("text.encoder", "it needs clip, pad, vocab_bytes and merges_bytes, nothing else.")
    if not isinstance(settings["pad"], str):
        raise ConfigInvalid("text.encoder", f"pad = {settings['pad']!r} is no token.")
    config, sizes = settings["clip"], (settings["vocab_bytes"], settings["merges_bytes"])
    if not all(type(size) is int and 0 <= size <= BYTES_LIMIT for size in sizes):
        raise ConfigInvalid("text.encoder", f"its vocabulary may have up to {BYTES_LIMIT:,} bytes.")
    if not isinstance(config, dict) or config.keys() != CLIP_DEFAULTS.keys():
        raise ConfigInvalid("text.encoder.clip", f"it needs exactly {', '.join(CLIP_DEFAULTS)}.")
    check_config("text.encoder.clip", config, CLIP_DEFAULTS)
    if config["hidden_size"] != text.width:
        raise ConfigInvalid("text.width", f"{text.width} is not the encoder's {config['hidden_size']}.")
    if text.length > config["max_position_embeddings"]:
        most = config["max_position_embeddings"]
        raise ConfigInvalid("text.length", f"{text.length} is more than the encoder's {most} positions.")
    return config, sizes


def tokenizer(vocab: bytes, merges: bytes, pad: str, pieces: int) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer from a vocabulary's bytes. Raises ConfigInvalid where they are none."""
    with IMPORTING:
        from transformers import CLIPTokenizer

    try:
        numbers = read_json(vocab)
        pairs: list[Any] = [tuple(line.split(" ")) for line in merges.decode().splitlines()]
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigInvalid("text.vocab", f"it is not readable: {error}.") from error
    if not isinstance(numbers, dict) or not all(
        type(number) is int and 0 <= number < pieces for number in numbers.values()
    ):
        raise ConfigInvalid("text.vocab", f"it must give each piece a number below {pieces}.")
    if missing := sorted({START, END, pad} - numbers.keys()):
        raise ConfigInvalid("text.vocab", f"it lacks the piece {missing[0]!r}.")
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= numbers.keys():
            raise ConfigInvalid("text.merges", f"{' '.join(pair)!r} is no pair of pieces that make a third.")
    return CLIPTokenizer(vocab=numbers, merges=pairs, pad_token=pad)

"""Captions are embedded as Stable Diffusion's pipeline embeds them, from nothing but the backbone's file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from tests.tiny_unets import CLIP, MERGES, VOCAB, built, text_spec

CAPTIONS = ["a cab", "ABC  abc", "", "dead beef " * 10, "é?"]


def test_embeddings_are_those_of_clips_own_tokenizer_and_model() -> None:
    backbone = built(text_spec())
    assert backbone.text is not None
    merges = [tuple(line.split()) for line in MERGES.decode().splitlines()]
    tokenizer = CLIPTokenizer(vocab=json.loads(VOCAB), merges=merges)  # type: ignore[arg-type]
    model = CLIPTextModel(CLIPTextConfig(**CLIP, bos_token_id=18, eos_token_id=19)).eval()
    model.load_state_dict(backbone.text.clip.state_dict())
    padded = tokenizer(CAPTIONS, padding="max_length", max_length=7, truncation=True, return_tensors="pt")
    assert padded.input_ids.shape == (5, 7)
    expected = model(padded.input_ids).last_hidden_state
    torch.testing.assert_close(backbone.encode_text(CAPTIONS), expected)


def test_pieces_merge_ends_are_marked_and_short_captions_filled_up() -> None:
    backbone = built(text_spec())
    assert backbone.text is not None
    tokenizer = backbone.text.tokenizer
    found = tokenizer("abc a", padding="max_length", max_length=7).input_ids
    pieces = tokenizer.convert_ids_to_tokens(found)
    end = "<|endoftext|>"
    assert pieces == ["<|startoftext|>", "abc</w>", "a</w>", end, end, end, end]


def test_a_caption_has_one_embedding_beside_whatever_others() -> None:
    backbone = built(text_spec())
    alone = torch.cat([backbone.encode_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(backbone.encode_text(CAPTIONS), alone)
    assert alone.shape == (5, 7, 12)
    assert not torch.allclose(alone[0], alone[1])


def test_the_encoder_and_its_vocabulary_stand_in_the_backbones_file(tmp_path: Path) -> None:
    backbone = built(text_spec())
    path = tmp_path / "backbone.safetensors"
    save_backbone(backbone, path)
    loaded = load_backbone(path)
    assert torch.equal(loaded.encode_text(CAPTIONS), backbone.encode_text(CAPTIONS))
    assert inspect_backbone(path).spec == text_spec()
    other = built(text_spec(), vocab=VOCAB.replace(b'"a": 0, "b": 1', b'"a": 1, "b": 0'))
    save_backbone(other, tmp_path / "other.safetensors")
    fingerprints = {inspect_backbone(file).fingerprint for file in tmp_path.iterdir()}
    assert len(fingerprints) == 2

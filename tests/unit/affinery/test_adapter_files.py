"""An adapter file says what it is, and is refused where it is not that."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from affinery.adapters.files import META_KEY, AdapterMeta, adapter_bytes, read_adapter
from affinery.errors import AdapterFileInvalid
from affinery.tensor_files import sha256_file
from tests import tiny_models as tiny


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "adapter.safetensors"
    where.write_bytes(adapter_bytes(tiny.adapter(tiny.meta())))
    return where


def rewritten(path: Path, tensors: dict[str, Tensor] | None = None, record: object = None) -> Path:
    text = record if isinstance(record, str) else json.dumps(record or record_with())
    path.write_bytes(save(tensors or load_file(path), metadata={META_KEY: text}))
    return path


def record_with(**changes: object) -> dict[str, Any]:
    return {**json.loads(tiny.meta().to_json()), **changes}


def refusal(path: Path) -> str:
    with pytest.raises(AdapterFileInvalid) as refused:
        read_adapter(path)
    return str(refused.value)


def test_the_same_adapter_always_gives_the_same_bytes(path: Path) -> None:
    assert path.read_bytes() == adapter_bytes(tiny.adapter(tiny.meta()))
    again = read_adapter(path)
    shuffled = dict(sorted(again.tensors.items(), reverse=True))
    assert adapter_bytes(type(again)(again.meta, shuffled)) == path.read_bytes()


def test_tensor_names_carry_no_task(path: Path) -> None:
    assert not [name for name in load_file(path) if "digits" in name]


def test_a_file_of_another_digest_than_asked_for_is_refused(path: Path) -> None:
    digest = sha256_file(path)
    assert read_adapter(path, digest).meta == tiny.meta()
    tensors = load_file(path)
    tensors["class_rows"][0, 0] += 1e-6
    rewritten(path, tensors, json.loads(tiny.meta().to_json()))
    assert read_adapter(path).meta == tiny.meta()
    with pytest.raises(AdapterFileInvalid, match=f"not those of the digest {digest[:12]}"):
        read_adapter(path, digest)


def test_the_parameters_of_an_adapter_are_counted(path: Path) -> None:
    per_layer = {
        "adaLN_modulation.1": (16, 96),
        "attn.qkv": (16, 48),
        "attn.proj": (16, 16),
        "mlp.fc1": (16, 64),
        "mlp.fc2": (64, 16),
    }
    one_block = sum(2 * out + 1 + 2 * (inputs + out) for inputs, out in per_layer.values())
    assert read_adapter(path).parameters == 2 * one_block + 2 * 16


def test_a_missing_file_a_folder_a_truncated_one_and_other_content_are_told_apart(path: Path) -> None:
    assert "No such file" in refusal(path.with_name("none"))
    assert "directory" in refusal(path.parent)
    os.mkfifo(path.with_name("pipe"))
    assert "pipe" in refusal(path.with_name("pipe"))
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut off" in refusal(path)
    path.write_bytes(b"PK\x03\x04" * 9)
    assert "not a safetensors file" in refusal(path)


def test_a_file_without_a_record_is_refused(path: Path) -> None:
    path.write_bytes(save(load_file(path)))
    assert "no 'affinery.adapter' record" in refusal(path)


HOSTILE: dict[str, object] = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "brackets without end": "[" * 100_000,
    "a key twice": '{"task":"a","task":"b"}',
    "a task of no text": record_with(task=1),
    "config that is a list": record_with(config=[1]),
    "config with NaN": json.dumps(record_with(config={"rank": float("nan")})),
    "an unknown field": record_with(extra=1),
    "another layout": record_with(layout="prepend"),
    "a block of text": record_with(block=["4", "6"]),
    "a block of floats": record_with(block=[4.0, 6.0]),
    "a block of three": record_with(block=[4, 5, 6]),
    "a block backwards": record_with(block=[6, 4]),
    "an empty block": record_with(block=[4, 4], class_names=[]),
    "a block on the null row": record_with(block=[3, 5]),
    "a block on the backbone's rows": record_with(block=[0, 2]),
    "a block of another length": record_with(block=[4, 7]),
    "a negative null row": record_with(null_index=-1),
    "class names in one string": record_with(class_names="ab"),
    "class names that are numbers": record_with(class_names=[1, 2]),
    **{
        f"no {key}": {name: value for name, value in record_with().items() if name != key}
        for key in ("task", "kind", "config", "backbone", "null_index", "block", "class_names")
    },
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_record_that_cannot_be_is_refused(what: str, path: Path) -> None:
    assert "its record cannot be read" in refusal(rewritten(path, record=HOSTILE[what]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_and_its_tensor_named(value: float, path: Path) -> None:
    tensors = load_file(path)
    tensors["layers.blocks.1.mlp.fc2.up"][0, 0] = value
    assert "'layers.blocks.1.mlp.fc2.up' holds values that are not finite" in refusal(
        rewritten(path, tensors)
    )


def test_tensors_of_whole_numbers_are_refused(path: Path) -> None:
    tensors = load_file(path)
    tensors["class_rows"] = tensors["class_rows"].long()
    assert "'class_rows' holds I64" in refusal(rewritten(path, tensors))


@pytest.mark.parametrize("name", ["surprise", "layers", "layers.", "layers.one", "class_rows.0"])
def test_tensors_that_belong_to_no_layer_are_refused(name: str, path: Path) -> None:
    tensors = load_file(path) | {name: torch.zeros(1)}
    assert f"tensor {name!r} belongs to no layer" in refusal(rewritten(path, tensors))


@pytest.mark.parametrize("rows", [None, torch.zeros(3, 16), torch.zeros(())])
def test_missing_or_too_many_class_rows_are_refused(rows: Tensor | None, path: Path) -> None:
    tensors = load_file(path)
    del tensors["class_rows"]
    if rows is not None:
        tensors["class_rows"] = rows
    assert "it lacks class rows for its 2 classes" in refusal(rewritten(path, tensors))


def test_a_record_survives_its_journey_through_the_file() -> None:
    record = tiny.meta("żółw 🐢", class_names=("日本", 'quote "'))
    assert AdapterMeta.from_json(record.to_json()) == record

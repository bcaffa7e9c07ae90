"""safetensors headers are believed only where every byte of the file bears them out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from affinery import tensor_files
from affinery.tensor_files import NotSafetensors, fingerprint, read_header, write_whole


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body + data)
    return path


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_a_file_of_safetensors_own_writer_is_read(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2, 3), "n": torch.zeros((), dtype=torch.int64), "none": torch.zeros(0, 4)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(tensors, metadata={"note": "grün"}))
    header = read_header(path)
    assert header.metadata == {"note": "grün"}
    assert {name: found.shape for name, found in header.tensors.items()} == {
        "w": (2, 3),
        "n": (),
        "none": (0, 4),
    }


REFUSED: dict[str, tuple[Any, bytes]] = {
    "not JSON": (b"{", b""),
    "a list": ([], b""),
    "a number": (3, b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "a tensor that is no object": ({"w": 3}, b""),
    "a tensor that is null": ({"w": None}, b""),
    "no place": ({"w": {"dtype": "F32", "shape": [1]}}, b"0000"),
    "a field too many": ({"w": entry([1], 0, 4) | {"more": 1}}, b"0000"),
    "three offsets": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, b"0000"),
    "offsets of text": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, b"0000"),
    "offsets of floats": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, b"0000"),
    "a shape of floats": ({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"0000"),
    "a shape of truths": ({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"0000"),
    "a shape that is text": ({"w": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, b"0000"),
    "a negative side": ({"w": entry([-1], 0, -4)}, b""),
    "two negative sides": ({"w": entry([-1, -1], 0, 4)}, b"0000"),
    "a NaN": (b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"0000"),
    "an unknown type": ({"w": entry([1], 0, 4, "F33")}, b"0000"),
    "a hole": ({"v": entry([1], 0, 4), "w": entry([1], 8, 12)}, b"0" * 12),
    "an overlap": ({"v": entry([2], 0, 8), "w": entry([2], 4, 12)}, b"0" * 12),
    "the same bytes twice": ({"v": entry([1], 0, 4), "w": entry([1], 0, 4)}, b"0000"),
    "a start before the data": ({"w": entry([1], -4, 0)}, b""),
    "a shape larger than its place": ({"w": entry([2], 0, 4)}, b"0000"),
    "more than the file has": ({"w": entry([2], 0, 8)}, b"0000"),
    "an astronomic shape": ({"w": entry([10**30, 10**30], 0, 4)}, b"0000"),
    "bytes behind the last tensor": ({"w": entry([1], 0, 4)}, b"00000"),
    "data without tensors": ({}, b"0"),
    "a name twice": (b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":1}', b"0"),
    "metadata twice": (b'{"__metadata__":{"a":"1","a":"2"}}', b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "metadata that is a list": ({"__metadata__": ["a"]}, b""),
    "a number of 10,000 digits": (b'{"w":{"dtype":"F32","shape":[' + b"1" * 10_000 + b"]}}", b"0"),
    "a hundred thousand brackets": (b"[" * 100_000, b""),
    "a shape of a hundred thousand sides": ({"w": entry([2] * 100_000, 0, 4)}, b"0000"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_header_that_cannot_be_believed_is_refused_at_once(what: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", *REFUSED[what])
    began = time.monotonic()
    with pytest.raises(NotSafetensors):
        read_header(path)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("content", [b"", b"1234567", b"\x89PNG\r\n\x1a\n" * 9, b"\xff" * 8, b"\xff" * 64])
def test_other_files_are_refused_without_reading_what_their_first_bytes_claim(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(NotSafetensors):
        read_header(path)


@pytest.mark.parametrize("length", [tensor_files.HEADER_LIMIT_BYTES + 1, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_before_it_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(tensor_files.HEADER_LIMIT_BYTES + 100)  # sparse: it takes no room on the disk
    with pytest.raises(NotSafetensors, match="cut off in its header"):
        read_header(path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotSafetensors, match="pipe"):
        read_header(tmp_path / "pipe")


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = save({"w": torch.ones(3), "v": torch.ones(2, 2)}, metadata={"k": "v"})
    path = tmp_path / "a.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(NotSafetensors):
            read_header(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_by_safetensors_too(data: st.DataObject, tmp_path: Path) -> None:
    """No header passes here at which safetensors would fail later, in the middle of the work."""
    body = bytearray(save({"w": torch.ones(3), "v": torch.ones(2, 2)}, metadata={"k": "v"}))
    length = 8 + int.from_bytes(body[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, length - 1))
        body[at] = data.draw(st.sampled_from(b'0123456789"{}[],:-.eEnF \x00\xff') | st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(body)
    try:
        header = read_header(path)
    except NotSafetensors:
        return
    assert load(bytes(body)).keys() == header.tensors.keys()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
some_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "I64"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-4, 64), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(st.sampled_from(["v", "w", "__metadata__"]), some_entry | json_values),
    size=st.integers(0, 64),
)
def test_whatever_the_header_says_it_is_read_or_refused_in_one_way(
    header: dict[str, Any], size: int, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.safetensors", header, b"0" * size)
    with contextlib.suppress(NotSafetensors):
        assert read_header(path).tensors.keys() <= header.keys()


def test_the_fingerprint_does_not_depend_on_how_the_container_orders_its_tensors(tmp_path: Path) -> None:
    one = {"v": entry([1], 0, 4), "w": entry([1], 4, 8)}
    other = {"w": entry([1], 0, 4), "v": entry([1], 4, 8), "__metadata__": {"made": "elsewhere"}}
    first = written(tmp_path / "1.safetensors", one, b"aaaabbbb")
    second = written(tmp_path / "2.safetensors", other, b"bbbbaaaa")
    assert fingerprint(first, "{}") == fingerprint(second, "{}")


@pytest.mark.parametrize(
    ("header", "data", "spec"),
    [
        ({"v": entry([1], 0, 4), "w": entry([1], 4, 8)}, b"aaaabbbc", "{}"),
        ({"v": entry([1], 0, 4), "x": entry([1], 4, 8)}, b"aaaabbbb", "{}"),
        ({"v": entry([1, 1], 0, 4), "w": entry([1], 4, 8)}, b"aaaabbbb", "{}"),
        ({"v": entry([1], 0, 4, "I32"), "w": entry([1], 4, 8)}, b"aaaabbbb", "{}"),
        ({"v": entry([1], 0, 4), "w": entry([1], 4, 8)}, b"aaaabbbb", '{"a":1}'),
    ],
)
def test_any_difference_in_bytes_name_shape_type_or_spec_changes_the_fingerprint(
    header: dict[str, Any], data: bytes, spec: str, tmp_path: Path
) -> None:
    first = written(tmp_path / "1.safetensors", {"v": entry([1], 0, 4), "w": entry([1], 4, 8)}, b"aaaabbbb")
    assert fingerprint(first, "{}") != fingerprint(written(tmp_path / "2", header, data), spec)


def test_a_file_without_tensors_has_a_fingerprint(tmp_path: Path) -> None:
    assert len(fingerprint(written(tmp_path / "a", {}), "{}")) == 64


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_whole(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write_whole(path, b"n" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_whose_name_is_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', '{"a":{"b":1,"b":2}}', "NaN", "[Infinity]", "[" * 100_000, "{"]
)
def test_json_with_repeats_no_numbers_or_no_bottom_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        tensor_files.read_json(text)

"""What errors say to who asks from elsewhere: all but the places of this machine."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

from affinery.errors import AffineryError, PlaceInvalid, words_of
from orchestration.errors import AttemptFailed, DatasetInvalid, DatasetUnavailable, DriverDied
from orchestration.talk import packed, unpacked
from registry.errors import BlobDamaged, BlobMissing

MODULES = ("affinery.errors", "registry.errors", "trainers.errors", "orchestration.errors")
PLACES = ("path", "folder", "its folder", "file", "where", "pack")
"""How the docstrings call an argument that names a place."""


def every_error() -> Iterator[type[AffineryError]]:
    for name in MODULES:
        for value in vars(import_module(name)).values():
            if isinstance(value, type) and issubclass(value, AffineryError) and value.__module__ == name:
                yield value


def test_every_argument_that_its_docstring_calls_a_place_is_told_on_this_machine_only() -> None:
    found = {}
    for error in every_error():
        told = re.search(r"Args: (.*?)\.(?:\s|$)", error.__doc__ or "", flags=re.DOTALL)
        args = [] if told is None else re.split(r", (?![^(]*\))", told[1])
        lacking = [arg for i, arg in enumerate(args) if arg in PLACES and i not in error.here]
        if lacking:
            found[error.__name__] = lacking
    assert found == {}
    assert sum(bool(error.here) for error in every_error()) > 20


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BlobMissing("ab" * 32, "/srv/blobs"), "Blob abababababab is not in the store."),
        (BlobDamaged("ab" * 32, "cd" * 32, "/srv/blobs"), "Blob abababababab in the store was changed"),
        (
            DatasetUnavailable("/srv/data", "[Errno 2] '/srv/data/x'"),
            "DVC in the data folder failed: the log",
        ),
        (AttemptFailed("OSError: '/srv/data/x'"), "none of ours ended it"),
        (DriverDied("was killed", "cannot open /srv/data/x"), "was killed."),
        (
            PlaceInvalid("--out", "/srv/out", "cannot be made", "at '/srv'"),
            "--out: what it names cannot be made.",
        ),
    ],
)
def test_an_error_says_the_same_elsewhere_without_its_places(error: AffineryError, told: str) -> None:
    assert "/srv" in str(error)
    for each in (error, pickle.loads(pickle.dumps(error)), unpacked(packed(error))):  # noqa: S301
        assert isinstance(each, AffineryError)
        assert told in each.elsewhere()
        assert "/srv" not in each.elsewhere()


def test_an_upload_is_told_by_the_name_that_its_sender_knows() -> None:
    error = DatasetInvalid("/srv/cache/1f/cats.csv, line 3", "it names /srv/cache/1f/a.png twice")
    assert (
        str(error.called("/srv/cache/1f", "the upload"))
        == error.called("/srv/cache/1f", "the upload").elsewhere()
    )
    assert (
        "the upload/cats.csv, line 3: it names the upload/a.png twice"
        in error.called("/srv/cache/1f", "the upload").elsewhere()
    )


def test_what_the_system_says_is_passed_on_without_the_file_that_it_names() -> None:
    with pytest.raises(OSError, match="/nothing/there") as raised:
        open("/nothing/there")  # noqa: PTH123, SIM115
    assert words_of(raised.value) == "No such file or directory"
    assert words_of(BlobMissing("ab" * 32, "/srv/blobs")).startswith("Blob abababababab is not in the store.")

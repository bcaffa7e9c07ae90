"""What errors say to who asks from elsewhere: all but the places of this machine."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

from affinery.errors import AffineryError, ConfigInvalid, PlaceInvalid, as_fields, words_of
from orchestration.errors import (
    AttemptFailed,
    DatasetInvalid,
    DatasetUnavailable,
    DriverDied,
    ExportRefused,
    NeverFits,
    OverLimit,
    ScheduleInvalid,
    TooFewImages,
    TooLarge,
)
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
            "out: what it names cannot be made.",
        ),
    ],
)
def test_an_error_says_the_same_elsewhere_without_its_places(error: AffineryError, told: str) -> None:
    assert "/srv" in str(error)
    for each in (error, pickle.loads(pickle.dumps(error)), unpacked(packed(error))):  # noqa: S301
        assert isinstance(each, AffineryError)
        assert told in each.elsewhere()
        assert "/srv" not in each.elsewhere()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigInvalid("--canny-low, --canny-high", "no task is told edges."), "canny_low, canny_high: no"),
        (ConfigInvalid(7, "it is no name; see --kind"), "7: it is no name; see --kind"),
        (ScheduleInvalid("nightly", "it names no task; name one with --task"), "name one with task."),
        (NeverFits("1f", "8 GPUs", "there are 2"), "(cpus, gpus, memory_bytes, workers)"),
        (TooFewImages("digits", "samples", 2, 3), "samples 2 is too few"),
        (ExportRefused("all", "no", "ship it with --unverified"), "ship it with unverified"),
        (DatasetInvalid("/srv/a--b", "a -- b: choose (--split, or --split all)"), "(split, or split all)"),
    ],
)
def test_options_of_commands_are_fields_elsewhere(error: AffineryError, told: str) -> None:
    assert " --" in f" {error}".replace("(", " ")
    for each in (error, error.called("/srv", "the upload"), pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert told in each.elsewhere()
        assert "--" in str(each)


def test_advice_that_names_options_names_fields_elsewhere() -> None:
    advice = ["--set batch=8", "a larger mask (--set mask_ratio=…)", "a smaller --rank", "less --memory"]
    fields = "recipe.batch=8; a larger mask (recipe.mask_ratio=…); a smaller config.rank; less memory_bytes."
    for error in (TooLarge("40 GiB", ["2 GiB"], "24", advice), OverLimit("It", "40 GiB", "24", advice, 40)):
        assert "--set batch=8; a larger mask (--set mask_ratio=…); a smaller --rank" in str(error)
        for each in (error, pickle.loads(pickle.dumps(error)), unpacked(packed(error))):  # noqa: S301
            assert isinstance(each, AffineryError)
            assert fields in each.elsewhere()


def test_what_only_looks_like_an_option_is_left_as_it_is() -> None:
    for text in ("the task 'a--b'", "no column '--x'", "a -- b", "--", "---"):
        assert as_fields(text) == text


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

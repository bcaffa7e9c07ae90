"""Every error of the registry says what, why and how to mend it, and survives a worker's pickle."""

from __future__ import annotations

import pickle

import pytest

from affinery.errors import AffineryError, UserError
from registry import errors

DIGEST = "ab" * 32
EXAMPLES = [
    errors.NotFound("task", "digit", ["digits", "faces"]),
    errors.NotFound("task", "digit", []),
    errors.AmbiguousRef("digits", ["adapter:digits@1", "dataset:digits@1"]),
    errors.RefInvalid("a@b", "'b' is not a version number."),
    errors.NameInvalid("task", "../x", "'/' has a meaning of its own"),
    errors.RecordInvalid("The task's config", "it is not plain JSON"),
    errors.RequirementInvalid("recognition"),
    errors.FilterInvalid("kind ? affiner", 5, "one of =, !=, >=, <=, >, < is wanted here"),
    errors.TaskExists("digits"),
    errors.TokenExists("ci"),
    errors.WebhookExists("chat"),
    errors.Renamed("backbone", "dit@1", "sit@1"),
    errors.AllRetired("adapter", "digits", ["digits@1", "digits@2"]),
    errors.ProtocolAmbiguous("kid", [DIGEST, "cd" * 32]),
    errors.ProtocolsDiffer("digits@1", "faces@1", ("samples 200 and 400",), None),
    errors.ProtocolsDiffer("digits@1", "digits@2", ("reference.dataset a and b",), "digits@2"),
    errors.ProtocolsDiffer("digits@1", "faces@1", ("reference.dataset a and b",), ""),
    errors.NotMeasured("digits@1", None),
    errors.NotMeasured("digits@1", DIGEST),
    errors.NameTaken("task", "digits"),
    errors.TaskHeld("digits"),
    errors.KeyReused("key"),
    errors.AliasMoved("digits@champion", "digits@1", "digits@2"),
    errors.GateClosed("digits@1", "recognition>=0.8", "recognition", 0.5),
    errors.GateClosed("digits@1", "recognition>=0.8", "recognition", None),
    errors.ArchiveInvalid("a.tar", "it is cut off"),
    errors.ArchiveConflict(["task:digits: it has another digest"]),
    errors.StaleFence("job", 1, 2, "running"),
    errors.Refused("a published node row is never changed"),
    errors.RegistryMissing("/w/registry.db"),
    errors.RegistryOutdated("0001", "0002"),
    errors.RegistryTooNew("0009", "0001", "9.0"),
    errors.RegistryTooNew("0009", "0001", ""),
    errors.RegistryDamaged("/w/registry.db", "a trigger is gone"),
    errors.RegistryReadOnly("/w/registry.db"),
    errors.RegistryFull("/w/registry.db"),
    errors.RegistryBusy("/w/registry.db", 30),
    errors.RegistryUnreachable("host", "refused"),
    errors.BlobMissing(DIGEST, "/w/blobs"),
    errors.BlobDamaged(DIGEST, DIGEST, "/w/blobs"),
    errors.BlobUnknown(DIGEST),
    errors.StorageFull("/w/blobs", 1_000_000),
    errors.StorageReadOnly("/w/blobs"),
    errors.StorageBroken("/w/blobs", "Input/output error"),
    errors.StorageUnknown("s4", ["file", "s3"]),
    errors.StorageUnreachable("s3://bucket/", "AccessDenied"),
    errors.StorageUrlInvalid("s3", "it names no bucket"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_arrives_whole_and_reads_as_sentences(error: AffineryError) -> None:
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert str(arrived) == str(error)
    assert len(str(error)) > 20
    assert error.exit_code == (2 if isinstance(error, UserError) else 1)


def test_every_error_is_drawn_in_the_tree_and_has_an_example() -> None:
    classes = {
        name: each
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.RegistryError)
    }
    assert errors.__doc__ is not None
    for name in classes:
        assert name in errors.__doc__
    shown = {type(example).__name__ for example in EXAMPLES}
    assert classes.keys() - shown == {"RegistryError", "StorageError"}


def test_a_kind_is_spoken_of_with_its_article() -> None:
    assert "the name of an alias" in str(errors.NameInvalid("alias", "1", "it is a number"))
    assert "the name of a task" in str(errors.NameInvalid("task", "/", "'/' has a meaning of its own"))

"""Every use case reads references alike: names, versions, aliases, digests; what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from registry import (
    adapters,
    aliases,
    backbones,
    certificates,
    compositions,
    datasets,
    errors,
    exports,
    refs,
    renaming,
    tasks,
)
from registry.session import Sessions
from tests import registry_world as world


@pytest.fixture
def told(ledger: Sessions) -> Sessions:
    """One of everything that a reference can mean, and an alias on the first version of an adapter."""
    with ledger.begin() as session:
        world.backbone(session)
        world.learnt(session, "digits", 1)
        world.learnt(session, "digits", 2)
        aliases.point(session, "champion", "digits@1")
        compositions.register(
            session, name="all", backbone="dit", mode="routed", recipe={}, members=["digits@champion"]
        )
        compositions.record_export(
            session, composition="all", format="bundle", digest=world.sha("bundle"), path="/x", size_bytes=1
        )
    return ledger


GETTERS: list[tuple[Callable[..., Any], str]] = [
    (backbones.get, "dit@1"),
    (datasets.get, "digits@1"),
    (tasks.get, "digits"),
    (adapters.get, "digits@2"),
    (compositions.get, "all@1"),
    (exports.get, "all@1"),
]


@pytest.mark.parametrize(("get", "ref"), GETTERS)
def test_every_kind_of_thing_is_found_by_name_version_kind_and_digest(
    told: Sessions, get: Callable[..., Any], ref: str
) -> None:
    with told.read() as session:
        record = get(session, ref)
        kind = refs.describe(session, [record.node_id])[record.node_id].kind
        assert record.ref == ref
        for other in (f"{kind}:{ref}", ref.split("@")[0], record.digest, record.digest[:6].upper()):
            assert get(session, other) == record
        with pytest.raises(errors.RefInvalid, match=f"an? {kind} is wanted"):
            get(session, f"run:{ref}")
        with pytest.raises(errors.NotFound, match="Did you mean"):
            get(session, ref.split("@")[0] + "x")
        with pytest.raises(errors.NotFound):
            get(session, "ffffffff")


def test_an_alias_is_a_reference_wherever_an_adapter_is_asked_for(told: Sessions) -> None:
    with told.begin() as session:
        assert adapters.get(session, "digits@champion").ref == "digits@1"
        assert refs.resolve(session, "digits@champion").full_ref == "adapter:digits@1"
        assert refs.resolve(session, "adapter:digits@champion").full_ref == "adapter:digits@1"
        assert compositions.get(session, "all").members == ("digits@1",)
        assert certificates.list_for(session, "digits@champion") == []
        aliases.point(session, "champion", "digits@2")
        assert adapters.get(session, "digits@champion").ref == "digits@2"


def test_an_alias_that_does_not_exist_is_answered_with_those_that_do(told: Sessions) -> None:
    with told.read() as session:
        with pytest.raises(errors.NotFound, match="Did you mean 'digits@champion'") as caught:
            refs.resolve(session, "digits@champoin")
        known = ["adapter:digits@2", "adapter:digits@1", "dataset:digits@1", "digits@champion"]
        assert caught.value.args[2] == known
        with pytest.raises(errors.NotFound):
            datasets.get(session, "digits@champion")
    with told.begin() as session:
        aliases.remove(session, "digits@champion")
    with told.read() as session, pytest.raises(errors.NotFound) as caught:
        refs.resolve(session, "digits@champion")
    assert "digits@champion" not in caught.value.args[2]


def test_a_digest_of_two_adapters_is_refused_with_both_even_where_only_adapters_are_asked_for(
    told: Sessions,
) -> None:
    with told.begin() as session:
        world.learnt(session, "faces", digest=world.sha("twin"))
        world.learnt(session, "birds", digest=world.sha("twin"))
    with told.read() as session, pytest.raises(errors.AmbiguousRef, match="adapter:birds@1") as caught:
        adapters.get(session, world.sha("twin")[:8])
    assert caught.value.args[1] == ["adapter:faces@1", "adapter:birds@1"]


def test_a_wrong_name_among_thousands_is_answered_with_the_near_one(ledger: Sessions) -> None:
    with ledger.begin() as session:
        for number in range(1100):
            world.dataset(session, f"aa {number:04}", salt=str(number))
        world.dataset(session, "zebras")
    with ledger.read() as session, pytest.raises(errors.NotFound, match="Did you mean 'zebras'"):
        datasets.get(session, "zebra")


def test_a_number_means_its_node_whatever_it_is_called_and_nothing_else(told: Sessions) -> None:
    with told.begin() as session:
        meant = adapters.get(session, "digits@1")
        ref = refs.fixed(meant.node_id)
        world.task(session, str(meant.node_id))  # a task whose name is the number
        renaming.rename(session, "task:digits", "numerals")
        assert (ref, adapters.get(session, ref).ref) == (f"node:{meant.node_id}", "numerals@1")
        assert refs.resolve(session, ref).full_ref == "adapter:numerals@1"
        with pytest.raises(errors.RefInvalid, match=r"it is adapter:numerals@1, and a task is wanted"):
            tasks.get(session, ref)
        with pytest.raises(errors.NotFound, match="numbers up to"):
            refs.resolve(session, "node:99999")
        for odd in ("node:", "node:0", "node:-1", "node:x", "node:1@2", "node:²", f"node:{'9' * 30}"):
            with pytest.raises(errors.RefInvalid):
                refs.resolve(session, odd)
        with pytest.raises(errors.RefInvalid, match="a name is to be changed"):
            renaming.rename(session, ref, "figures")


def test_an_old_name_that_looks_like_a_digest_never_comes_to_mean_one(told: Sessions) -> None:
    with told.begin() as session:
        digest = adapters.get(session, "digits@1").digest
        world.dataset(session, digest[:8])
        renaming.rename(session, f"dataset:{digest[:8]}", "letters")
    with told.read() as session:
        for ask in (lambda: refs.resolve(session, digest[:8]), lambda: adapters.get(session, digest[:8])):
            with pytest.raises(errors.NotFound):
                ask()
        with pytest.raises(errors.Renamed, match="letters"):
            refs.resolve(session, digest[:8])
        assert adapters.get(session, digest[:9]).ref == "digits@1"

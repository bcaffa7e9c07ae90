"""What a job is asked to do is what its names meant when it was scheduled, whatever they mean later."""

from __future__ import annotations

from typing import TypeVar

import pytest
from sqlalchemy.orm import Session

from affinery.merge_recipe import Merge, Weight, recipe_of
from orchestration import chores, queue
from orchestration.jobs import JobRecord
from registry import (
    adapters,
    aliases,
    backbones,
    blobs,
    compositions,
    errors,
    refs,
    renaming,
    verification,
)
from registry.records import AdapterRecord
from registry.session import Sessions
from tests import registry_world as world

Asked = TypeVar("Asked", bound=chores.Chore)


def scheduled(ledger: Sessions, chore: chores.Chore, after: tuple[str, ...] = ()) -> str:
    return chores.schedule(ledger, chore, after=after).job.id


def job(ledger: Sessions, job_id: str) -> JobRecord:
    with ledger.read() as session:
        return queue.get(session, job_id)


def begun(ledger: Sessions, job_id: str, chore: type[Asked]) -> tuple[Asked, Asked]:
    """What the job's driver gets to do, and how it speaks of it."""
    return chores.begun(ledger, chore, job(ledger, job_id).payload)


def measured(ledger: Sessions, job_id: str) -> list[AdapterRecord]:
    asked, _ = begun(ledger, job_id, chores.Evaluation)
    with ledger.read() as session:
        return [adapters.get(session, ref) for ref in asked.adapters]


def composed(session: Session, name: str, *members: str) -> int:
    sums = recipe_of([Merge("ink", tuple((place, Weight(0.5)) for place, _ in enumerate(members)))])
    return compositions.register(
        session, name=name, backbone="dit@1", mode="merged", recipe=sums, members=members
    ).node_id


def test_an_alias_that_moves_a_new_version_and_a_new_name_change_nothing_of_what_is_measured(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        first = world.learnt_on_new_backbone(session)
        aliases.point(session, "champion", "digits@1")
    asked = chores.Evaluation(adapters=["digits", "digits@champion", "digits@1"], samples=4)
    job_id = scheduled(ledger, asked)
    with ledger.begin() as session:
        second = world.learnt(session, "digits", 2)
        aliases.point(session, "champion", "digits@2")
        renaming.rename(session, "task:digits", "numerals")
    found = measured(ledger, job_id)
    assert [each.node_id for each in found] == [first.node_id] * 3
    assert {each.ref for each in found} == {"numerals@1"}
    assert second.version == 2


def test_a_new_version_and_new_names_change_nothing_of_what_is_exported(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.learnt(session, "digits")
        world.learnt(session, "faces")
        meant = composed(session, "both", "digits", "faces")
    task = scheduled(ledger, chores.Export(composition="both", task="faces"))
    whole = scheduled(ledger, chores.Export(composition="both", task="ink"))
    with ledger.begin() as session:
        composed(session, "both", "faces")
        renaming.rename(session, "composition:both", "pair")
        renaming.rename(session, "task:faces", "heads")
        composed(session, "same", "digits", "heads")  # of the same digest as what is meant
    asked, told = begun(ledger, task, chores.Export)
    with ledger.read() as session:
        assert compositions.get(session, asked.composition).node_id == meant
        assert refs.resolve(session, asked.task or "").ref == "heads"
    assert (told.composition, told.task) == ("composition:pair@1", "task:heads")
    assert begun(ledger, whole, chores.Export)[0].task == "ink"


def test_new_versions_and_new_names_change_nothing_of_what_is_rebased(ledger: Sessions) -> None:
    with ledger.begin() as session:
        old, new = world.backbone(session), world.backbone(session, salt="better")
        world.task(session, "digits", on="dit@1")
    job_id = scheduled(ledger, chores.Rebase(old="dit@1", new="dit", only=["digits"]))
    assert job(ledger, job_id).backbone_id == new.node_id
    with ledger.begin() as session:
        world.backbone(session, salt="best")
        renaming.rename(session, "backbone:dit", "transformer")
        renaming.rename(session, "task:digits", "numerals")
    asked, told = begun(ledger, job_id, chores.Rebase)
    with ledger.read() as session:
        meant = [backbones.get(session, ref).node_id for ref in (asked.old, asked.new)]
    assert meant == [old.node_id, new.node_id]
    assert (told.old, told.new) == ("backbone:transformer@1", "backbone:transformer@2")
    assert told.only == ["task:numerals"]


@pytest.mark.parametrize("ref", ["digits", "digits@1", "task:digits", "dataset:digits", "dit", "run:2026"])
def test_new_versions_and_new_names_change_nothing_of_what_is_verified(ledger: Sessions, ref: str) -> None:
    with ledger.begin() as session:
        adapter = world.learnt_on_new_backbone(session)
        if ref.startswith("run:"):
            assert adapter.run_id is not None
            ref = f"run:{refs.describe(session, [adapter.run_id])[adapter.run_id].digest[:12]}"
        meant = refs.resolve(session, ref, verification.PREFERRED)
    job_id = scheduled(ledger, chores.Verification(ref=ref))
    with ledger.begin() as session:
        world.learnt(session, "digits", 2)
        world.dataset(session, "digits", salt="more")
        world.backbone(session, salt="better")
        for name in ("task:digits", "dataset:digits", "backbone:dit"):
            renaming.rename(session, name, f"{name.partition(':')[2]} as it is now")
    asked, told = begun(ledger, job_id, chores.Verification)
    with ledger.read() as session:
        assert refs.resolve(session, asked.ref or "").node_id == meant.node_id
    now = meant.kind == "run" or "as it is now" in (told.ref or "")
    assert now, told


def test_what_shares_its_file_with_another_is_measured_whatever_it_is_called(ledger: Sessions) -> None:
    file = world.sha("the same file")
    with ledger.begin() as session:
        world.backbone(session)
        blobs.commit(session, file, 10)
        for name in ("digits", "faces"):
            world.task(session, name)
            adapters.bring_in(session, task=name, blob_digest=file, parameters=1, provenance={}, metrics={})
    job_id = scheduled(ledger, chores.Evaluation(adapters=["faces"]))
    with ledger.begin() as session:
        renaming.rename(session, "task:faces", "heads")
    assert [each.ref for each in measured(ledger, job_id)] == ["heads@1"]


def test_what_a_job_s_needs_are_still_to_make_is_found_by_its_name_of_before(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
    first = scheduled(ledger, chores.Evaluation(adapters=["digits"]))
    later = scheduled(ledger, chores.Evaluation(adapters=["digits@2"]), after=(first,))
    assert job(ledger, later).payload == {"adapters": ["digits@2"]}
    with pytest.raises(errors.NotFound):
        measured(ledger, later)
    with ledger.begin() as session:
        world.learnt(session, "digits", 2)
        renaming.rename(session, "task:digits", "numerals")
    assert [each.ref for each in measured(ledger, later)] == ["numerals@2"]


def test_a_job_tells_what_it_is_to_do_in_the_names_of_today(ledger: Sessions) -> None:
    with ledger.begin() as session:
        adapter = world.learnt_on_new_backbone(session)
    record = job(ledger, scheduled(ledger, chores.Evaluation(adapters=["digits"], samples=4)))
    assert record.payload == {"adapters": [f"node:{adapter.node_id}"], "samples": 4}
    with ledger.begin() as session:
        renaming.rename(session, "task:digits", "numerals")
        told = chores.told(session, record.kind, record.payload)
        assert told == {"adapters": ["adapter:numerals@1"], "samples": 4}
        for odd in ({"adapters": ["node:999"]}, {"adapters": ["node:x"]}, {"recipe": {"steps": 1}}):
            assert chores.told(session, "evaluate", odd) == odd
        assert chores.told(session, "train", {"recipe": {}}) == {"recipe": {}}

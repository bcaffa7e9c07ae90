"""What a job is to measure is what its names meant when it was scheduled."""

from __future__ import annotations

from orchestration import chores, queue
from registry import adapters, aliases, blobs, renaming
from registry.records import AdapterRecord
from registry.session import Sessions
from tests import registry_world as world


def measured(ledger: Sessions, job: str) -> list[AdapterRecord]:
    with ledger.read() as session:
        asked = chores.read(chores.Evaluation, queue.get(session, job).payload)
        return [adapters.get(session, ref) for ref in asked.adapters]


def test_an_alias_that_moves_a_new_version_and_a_new_name_change_nothing_of_what_is_measured(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        first = world.learnt_on_new_backbone(session)
        aliases.point(session, "champion", "digits@1")
    asked = chores.Evaluation(adapters=["digits", "digits@champion", "digits@1"], samples=4)
    job = chores.schedule(ledger, asked).job.id
    with ledger.begin() as session:
        second = world.learnt(session, "digits", 2)
        aliases.point(session, "champion", "digits@2")
        renaming.rename(session, "task:digits", "numerals")
    found = measured(ledger, job)
    assert [each.node_id for each in found] == [first.node_id] * 3
    assert {each.ref for each in found} == {"numerals@1"}
    assert second.version == 2


def test_what_shares_its_file_with_another_is_measured_by_its_version(ledger: Sessions) -> None:
    file = world.sha("the same file")
    with ledger.begin() as session:
        world.backbone(session)
        blobs.commit(session, file, 10)
        for name in ("digits", "faces"):
            world.task(session, name)
            adapters.bring_in(session, task=name, blob_digest=file, parameters=1, provenance={}, metrics={})
    job = chores.schedule(ledger, chores.Evaluation(adapters=["faces"])).job.id
    assert [each.ref for each in measured(ledger, job)] == ["faces@1"]


def test_what_a_job_s_needs_are_still_to_make_stays_as_it_was_written(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
    first = chores.schedule(ledger, chores.Evaluation(adapters=["digits"])).job.id
    later = chores.schedule(ledger, chores.Evaluation(adapters=["digits@2"]), after=[first]).job.id
    with ledger.read() as session:
        assert queue.get(session, later).payload == {"adapters": ["digits@2"]}

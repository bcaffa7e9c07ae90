"""What a new version costs in statements, and that fewer of them still keep every word."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import event

from registry import adapters, blobs, certificates, events, tags
from registry.records import AdapterRecord
from registry.session import Sessions, connect, sessions
from tests import registry_world as world


@pytest.fixture
def ledger(recorded_url: str) -> Iterator[Sessions]:
    engine = connect(recorded_url)
    yield sessions(engine)
    engine.dispose()


def _create(ledger: Sessions, name: str) -> AdapterRecord:
    with ledger.begin() as session:
        blobs.commit(session, world.sha(name), 10)
        made = adapters.bring_in(
            session,
            task="task:digits",
            blob_digest=world.sha(name),
            parameters=1,
            provenance={"from": "afar", "big": 10**30, "small": 1e-7},
            mlflow_run_id=None,
            metrics={"kid": 0.5, "none": None},
            warm_start="digits@1",
        )
        certificates.record(session, stage_adapter=made, results={}, level="unverified")
        tags.put(session, made, {"owner": "ann", "batch": "b"})
    return made


def test_a_new_version_with_its_proof_and_tags_takes_18_statements_at_most(ledger: Sessions) -> None:
    _create(ledger, "first")
    said: list[str] = []
    event.listen(
        ledger.engine, "before_cursor_execute", lambda _, __, statement, *___: said.append(statement)
    )
    _create(ledger, "second")
    assert len(said) <= 18, "\n".join(said)


def test_what_is_answered_at_once_is_what_is_read_later(ledger: Sessions) -> None:
    made = _create(ledger, "first")
    with ledger.read() as session:
        assert adapters.by_id(session, made.node_id) == made
        assert adapters.get(session, made.ref).to_json() == made.to_json()


def test_tags_put_by_two_at_once_are_all_there_and_each_change_is_an_event(ledger: Sessions) -> None:
    made = _create(ledger, "first")
    start = Barrier(2)

    def put(value: str) -> dict[str, str]:
        start.wait()
        with ledger.begin() as session:
            return tags.put(session, f"adapter:{made.ref}", {"stage": value, "owner": value, value: "x"})

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(put, ["one", "two"]))
    with ledger.read() as session:
        found = tags.of(session, made.node_id)
        happened = [each.kind for each in events.list_after(session, limit=1000, subject=made.node_id)]
    assert found in answers
    assert found.keys() == {"batch", "one", "owner", "stage", "two"}
    # Set by the first to come, changed by the second; owner was there and is changed twice.
    assert (happened.count("tag.set"), happened.count("tag.changed")) == (2 + 3, 3)


def test_the_switch_between_reading_and_writing_is_made_anew_on_every_connection(ledger: Sessions) -> None:
    for number in range(2):
        made = _create(ledger, str(number))
        with ledger.read() as session:
            assert adapters.by_id(session, made.node_id) == made
            with pytest.raises(Exception, match=r"readonly|read-only|only be read"):
                tags.put(session, f"adapter:{made.ref}", {"a": "b"})
        ledger.engine.dispose()

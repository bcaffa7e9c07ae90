"""Garbage collection takes what nothing needs and nothing else, whoever publishes or collects meanwhile."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from affinery_app.cli.commands import command_line
from registry import blobs, collection, compositions, errors, events, retirement
from registry.collection import collect
from registry.columns import utc_now
from registry.models import Base, Blob, Job, Upload
from registry.session import Sessions, connect, sessions
from registry.storage.local import LocalStore
from registry.verification import verify
from tests import registry_world as world

OLD = 3 * 24 * 3600.0


@pytest.fixture
def ledger(stored_url: str) -> Sessions:
    """The transactions of the stored world."""
    return sessions(connect(stored_url))


def aged(store: LocalStore, digest: str, seconds: float = OLD) -> str:
    """As if it had arrived some days ago."""
    then = time.time() - seconds
    os.utime(store.path(digest), (then, then))
    return digest


def unneeded(ledger: Sessions, store: LocalStore, text: str, seconds: float = OLD) -> str:
    """A committed blob that no published row names, some days old."""
    digest = aged(store, store.put_bytes(text.encode()), seconds)
    with ledger.begin() as session:
        created = utc_now() - timedelta(seconds=seconds)
        session.add(Blob(digest=digest, size_bytes=len(text), created_at=created))
    return digest


def gone(done: collection.Collection) -> set[str]:
    return {each.digest for each in done.gone}


def kept_by(done: collection.Collection, digest: str) -> tuple[str, ...]:
    (found,) = (each.kept_by for each in done.kept if each.digest == digest)
    return found


def test_what_nothing_needs_goes_and_everything_that_is_published_stays(
    ledger: Sessions, store: LocalStore
) -> None:
    before = set(store.digests())
    row, orphan = unneeded(ledger, store, "row and bytes"), aged(store, store.put_bytes(b"bytes alone"))
    done = collect(ledger, store)
    assert gone(done) == {row, orphan}
    assert done.freed_bytes == len("row and bytes") + len("bytes alone")
    assert set(store.digests()) == before
    assert verify(ledger.engine, store).sound
    assert gone(collect(ledger, store)) == set()
    with ledger.read() as session:
        assert [e.payload["digest"] for e in events.list_after(session, kind="blob.collected")] == [row]


def test_a_dry_run_takes_nothing_and_names_what_keeps_each_blob(ledger: Sessions, store: LocalStore) -> None:
    for file in store.digests():
        aged(store, file)
    row = unneeded(ledger, store, "row and bytes")
    young = store.put_bytes(b"young")
    done = collect(ledger, store, dry_run=True)
    assert gone(done) == {row}
    assert store.exists(row)
    reasons = {reason for each in done.kept for reason in each.kept_by}
    assert {
        "file of adapter:digits@2",
        "golden images of adapter:faces@1",
        "file of backbone:dit@1",
    } <= reasons
    assert kept_by(done, young) == ("it arrived 0 minutes ago",)
    with ledger.read() as session:
        assert blobs.known(session, row)


def test_a_lease_keeps_what_arrived_since_it_began_and_an_expired_one_nothing(
    ledger: Sessions, store: LocalStore
) -> None:
    arrived = aged(store, store.put_bytes(b"on its way"), seconds=7200)
    older = aged(store, store.put_bytes(b"older"))
    with ledger.begin() as session:
        lease = blobs.begin_upload(session, "worker 1", lease_seconds=3 * 3600)
        session.execute(update(Upload).values(started_at=utc_now() - timedelta(hours=2, minutes=1)))
    done = collect(ledger, store, grace_seconds=0)
    assert gone(done) == {older}
    assert kept_by(done, arrived) == ("an upload of worker 1 in progress",)
    with ledger.begin() as session:
        session.execute(update(Upload).values(expires_at=utc_now() - timedelta(seconds=1)))
    assert gone(collect(ledger, store, grace_seconds=0)) == {arrived}
    with ledger.begin() as session:
        assert session.get(Upload, lease.id) is None


def test_a_row_whose_bytes_were_just_put_again_stays(ledger: Sessions, store: LocalStore) -> None:
    row = unneeded(ledger, store, "old row")
    store.put_bytes(b"old row")
    done = collect(ledger, store)
    assert kept_by(done, row) == ("it arrived 0 minutes ago",)
    assert store.exists(row)


def test_beginnings_of_blobs_go_when_nobody_has_written_to_them_for_long(
    ledger: Sessions, store: LocalStore
) -> None:
    incoming = store.root / ".incoming"
    incoming.mkdir(exist_ok=True)
    stale, fresh = incoming / "stale", incoming / "fresh"
    stale.write_bytes(b"12345")
    fresh.write_bytes(b"123")
    os.utime(stale, (time.time() - OLD, time.time() - OLD))
    assert [each.name for each in collect(ledger, store, dry_run=True).leftovers] == ["stale"]
    assert stale.exists()
    assert collect(ledger, store).freed_bytes == 5
    assert [path.name for path in incoming.iterdir()] == ["fresh"]


def test_a_collection_killed_between_rows_and_bytes_is_finished_by_the_next(
    ledger: Sessions, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = unneeded(ledger, store, "row and bytes")
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(ledger, store)
    assert store.exists(row)
    assert verify(ledger.engine, store).sound
    assert gone(collect(ledger, store)) == {row}
    assert not store.exists(row)


def test_whatever_references_blobs_counts_as_using_them() -> None:
    referring = {
        f"{table.name}.{element.parent.name}"
        for table in Base.metadata.tables.values()
        for element in table.foreign_keys
        if element.column.table.name == "blob" and element.column.name == "digest"
    }
    assert {"adapter.blob_digest", "adapter.golden_blob", "backbone.blob_digest"} <= referring
    asked = str(blobs.needed())
    for each in referring:
        assert each in asked


@pytest.mark.postgres
def test_a_blob_that_a_publication_has_just_found_is_passed_over(
    stored_postgresql_url: str, store: LocalStore
) -> None:
    ledger = sessions(connect(stored_postgresql_url))
    row = unneeded(ledger, store, "found by a publication")
    with ledger.begin() as session:
        blobs.commit(session, row, len("found by a publication"))
        assert gone(collect(ledger, store, grace_seconds=0)) == set()
    with ledger.read() as session:
        assert blobs.known(session, row)
    assert store.exists(row)


def at_once(*work: Callable[[], None]) -> None:
    """Run all, and raise what any of them raised."""
    with ThreadPoolExecutor(len(work)) as pool:
        for each in [pool.submit(each) for each in work]:
            each.result()


@pytest.mark.timeout(600)
def test_two_collections_and_publications_at_once_lose_nothing(ledger: Sessions, store: LocalStore) -> None:
    """Each publication names a golden blob that lay about as garbage, being collected at that very moment."""
    rounds, publishers = 5, ("digits", "faces")
    golden = {name: [f"golden {name} {number}" for number in range(rounds)] for name in publishers}
    for texts in golden.values():
        for number, text in enumerate(texts):
            if number % 2:
                unneeded(ledger, store, text)
            else:
                aged(store, store.put_bytes(text.encode()))
    for number in range(20):
        unneeded(ledger, store, f"garbage {number}")
    done = threading.Event()
    running = [len(publishers)]

    def publish(name: str) -> None:
        try:
            for number, text in enumerate(golden[name]):
                with ledger.begin() as session:
                    upload = blobs.begin_upload(session, name)
                digest = store.put_bytes(text.encode())
                with ledger.begin() as session:
                    world.job(session, f"race-{name}-{number}", name)
                    blobs.commit(session, digest, len(text))
                    file = store.put_bytes(f"adapter {name} {number}".encode())
                    world.publish(
                        session,
                        f"race-{name}-{number}",
                        name,
                        digest=file,
                        blob_digest=file,
                        size_bytes=store.size_bytes(file),
                        golden_blob=digest,
                    )
                    session.get_one(Job, f"race-{name}-{number}").state = "done"
                with ledger.begin() as session:
                    blobs.end_upload(session, upload.id)
        finally:
            running[0] -= 1
            if not running[0]:
                done.set()

    def sweep() -> None:
        while not done.is_set():
            collect(ledger, store, grace_seconds=0)

    at_once(sweep, sweep, *(lambda name=name: publish(name) for name in publishers))
    report = verify(ledger.engine, store)
    assert [f for f in report.findings if f.check not in ("certificates", "adapter files")] == []
    assert report.counts["adapters"] == 4 + rounds * len(publishers)
    collect(ledger, store, grace_seconds=0)
    with ledger.read() as session:
        assert set(store.digests()) == set(blobs.users(session))


# --- retiring --------------------------------------------------------------------------------------


def test_a_retired_version_is_in_no_new_composition_and_restored_it_is_again(ledger: Sessions) -> None:
    def compose(name: str) -> None:
        with ledger.begin() as session:
            compositions.register(
                session, name=name, backbone="dit", mode="routed", recipe={}, members=["digits@1", "faces"]
            )

    with ledger.begin() as session:
        record = retirement.retire(session, "digits@1", "it draws sevens as ones")
        retirement.retire(session, "digits@1", "again")
        with pytest.raises(errors.RecordInvalid, match="no reason"):
            retirement.retire(session, "faces", "  ")
        for reason, what in (("\x1b[31mred", r"U\+001B"), ("a" * 2001, "longer than 2,000")):
            with pytest.raises(errors.RecordInvalid, match=what):
                retirement.retire(session, "faces", reason)
    with pytest.raises(errors.RecordInvalid, match=r"digits@1 is retired \(it draws sevens as ones\)"):
        compose("new")
    compose("both")  # it stands already
    with ledger.begin() as session:
        assert retirement.of(session, [record.node_id])[record.node_id].reason == "it draws sevens as ones"
        retirement.restore(session, "digits@1")
        retirement.restore(session, "digits@1")
        assert retirement.of(session, [record.node_id]) == {}
        kinds = [event.kind for event in events.list_after(session, subject=record.node_id)]
        assert kinds == ["adapter.published", "adapter.retired", "adapter.restored"]
    compose("new")


def test_the_bytes_of_a_retired_version_stay(ledger: Sessions, store: LocalStore) -> None:
    for digest in store.digests():
        aged(store, digest)
    with ledger.begin() as session:
        retirement.retire(session, "digits@1", "superseded")
    assert gone(collect(ledger, store, grace_seconds=0)) == set()
    assert verify(ledger.engine, store).sound


# --- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def command(stored_url: str, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """The command line in a workspace with this registry and store."""
    (tmp_path / "affinery.toml").write_text("schema = 1\n")
    monkeypatch.setenv("AFFINERY_REGISTRY_URL", stored_url)
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("AFFINERY_STORE_URL", str(store.root))
    return CliRunner()


def test_the_command_shows_what_would_go_and_then_takes_it(
    command: CliRunner, ledger: Sessions, store: LocalStore
) -> None:
    row = unneeded(ledger, store, "row and bytes")
    shown = command.invoke(command_line(), ["gc", "--dry-run"])
    assert shown.exit_code == 0
    assert "golden images of adapter:digits@2" in " ".join(shown.stdout.split())
    assert row[:12] in shown.stdout
    said = json.loads(command.invoke(command_line(), ["gc", "--dry-run", "--json"]).stdout)
    assert [each["digest"] for each in said["gone"]] == [row]
    assert said["dry_run"]
    assert store.exists(row)
    assert "freed      13 B" in command.invoke(command_line(), ["gc"]).stdout
    assert not store.exists(row)


def test_the_commands_retire_and_restore_a_version(command: CliRunner) -> None:
    retired = command.invoke(
        command_line(), ["adapter", "retire", "digits@1", "--reason", "superseded", "--json"]
    )
    assert json.loads(retired.stdout)["reason"] == "superseded"
    assert (
        "digits@1"
        in command.invoke(command_line(), ["adapter", "retire", "digits@1", "--reason", "again"]).stdout
    )
    assert json.loads(
        command.invoke(command_line(), ["adapter", "restore", "digits@1", "--json"]).stdout
    ) == {
        "ref": "digits@1",
        "retired": None,
    }
    assert "restored  digits@1" in command.invoke(command_line(), ["adapter", "restore", "digits@1"]).stdout

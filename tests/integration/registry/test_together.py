"""Eight processes at once that record, measure, tag, point and rename: nothing is lost, nothing skipped."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from registry import (
    adapters,
    aliases,
    backbones,
    blobs,
    datasets,
    errors,
    evaluations,
    events,
    renaming,
    tags,
    tasks,
)
from registry.session import Sessions, connect, sessions
from registry.storage.local import LocalStore
from registry.verification import verify
from tests import registry_world as world
from tests.integration.registry.test_bare_records import new_name
from tests.integration.registry.test_processes import outputs, start

PROCESSES, TURNS = 8, 3
AT_ONCE = """
import json
from pathlib import Path
from registry import adapters, aliases, datasets, evaluations, renaming, tags
from registry.storage.local import LocalStore
from tests.stored_world import Files

me, turns = sys.argv[2], int(sys.argv[3])
scratch = Path(sys.argv[5]) / me
scratch.mkdir()
files = Files(LocalStore(Path(sys.argv[4])), scratch)
done = {"registered": [], "renamed": [], "moved": 0}

def learn(turn):
    with ledger.begin() as session:
        files.learnt(session, f"task {me}", turn + 1)

def measure(turn):
    with ledger.begin() as session:
        world.evaluated(session, "faces", kid=0.1 * (turn + 1))  # as all the others do
        world.evaluated(session, "digits@2", kid=0.01 * (turn + 1), protocol={"by": me})

def tag(turn):
    with ledger.begin() as session:
        tags.put(session, "adapter:digits@1", {f"by-{me}": str(turn), "last": f"{me} {turn}"})

def point(turn):
    while True:
        with ledger.read() as session:
            history = aliases.history(session, "digits@champion") if seen(session) else []
        last = history[0] if history else None
        target = "digits@2" if last is None or last.adapter == "digits@1" else "digits@1"
        try:
            with ledger.begin() as session:
                move = 0 if last is None else last.number
                aliases.point(session, "champion", target, expect_moves=[move])
            done["moved"] += 1
            return
        except errors.AliasMoved:
            pass

def seen(session):
    return bool(aliases.list_all(session, task="digits"))

def register(turn):
    try:
        with ledger.begin() as session:
            called = renaming.called_now(session, "dataset", "snaps") or "snaps"
            made = world.dataset(session, called, salt=f"{me} {turn}")
        done["registered"].append(made.digest)
    except errors.NameTaken:
        pass  # renamed meanwhile

def rename(turn):
    try:
        with ledger.begin() as session:
            now = renaming.called_now(session, "dataset", "snaps") or "snaps"
        with ledger.begin() as session:
            renaming.rename(session, f"dataset:{now}", f"snaps {me} {turn}")
        done["renamed"].append(f"snaps {me} {turn}")
    except errors.NotFound:
        pass  # another was faster

work = [learn, measure, tag, point, register, rename]
print("ready", flush=True); sys.stdin.readline()
for turn in range(turns):
    first = (int(me) + turn) % len(work)
    for do in work[first:] + work[:first]:
        do(turn)
print(json.dumps(done))
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_eight_processes_that_do_everything_at_once_lose_nothing_and_skip_no_invariant(
    stored_url: str, store: LocalStore, tmp_path: Path
) -> None:
    ledger = sessions(connect(stored_url))
    with ledger.begin() as session:
        world.dataset(session, "snaps")
    (tmp_path / "scratch").mkdir()
    places = (str(TURNS), str(tmp_path / "blobs"), str(tmp_path / "scratch"))
    said = outputs([start(stored_url, AT_ONCE, str(number), *places) for number in range(PROCESSES)])
    done = [json.loads(out) for out in said]
    with ledger.read() as session:
        mine = [f"task {number}" for number in range(PROCESSES)]
        assert {tasks.get(session, name).latest_version for name in mine} == {TURNS}

        measured = Counter(each.digest for each in evaluations.list_all(session))
        assert max(measured.values()) == 1, "the same measurement was recorded twice"
        assert len(measured) == 1 + TURNS + PROCESSES * TURNS

        happened = Counter(each.kind for each in events.list_after(session, limit=10_000))
        labels = tags.of(session, adapters.get(session, "digits@1").node_id)
        assert labels.keys() == {"last", *(f"by-{number}" for number in range(PROCESSES))}
        assert {labels[f"by-{number}"] for number in range(PROCESSES)} == {str(TURNS - 1)}
        assert happened["tag.set"] + happened["tag.changed"] == 2 * PROCESSES * TURNS

        moves = aliases.history(session, "digits@champion")
        assert sum(each["moved"] for each in done) == PROCESSES * TURNS == len(moves)
        assert [move.number for move in moves] == list(range(len(moves), 0, -1))
        assert happened["alias.set"] == len(moves)

        names = [name for each in done for name in each["renamed"]]
        told = renaming.history(session, "dataset", "snaps")
        assert sorted(each.name for each in told) == sorted(names)
        assert [each.was for each in told] == ["snaps", *(each.name for each in told[:-1])]
        registered = {digest for each in done for digest in each["registered"]}
        called = [each for each in datasets.list_all(session) if each.name == told[-1].name]
        assert {each.digest for each in called[1:]} == registered
        assert [each.version for each in called] == list(range(1, len(registered) + 2))
    assert verify(ledger.engine, store).findings == []
    ledger.engine.dispose()


@pytest.fixture
def pair(postgresql_url: str) -> Iterator[tuple[Any, Any]]:
    """Two connections to a registry that has a dataset and a task, both called digits."""
    with sessions(connect(postgresql_url)).begin() as session:
        world.backbone(session)
        world.task(session)
    both = psycopg.connect(postgresql_url), psycopg.connect(postgresql_url)
    yield both
    for each in both:
        each.close()


def second(first: Any, other: Any, statement: str) -> str:
    """What the other is told that writes while the first has written, and commits meanwhile."""
    told: list[str] = []

    def write() -> None:
        try:
            other.execute(statement)
            other.commit()
        except psycopg.Error as error:
            told.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while thread.is_alive() and not first.execute(waiting).fetchone()[0]:
        pass
    first.commit()
    thread.join(30)
    return "".join(told)


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["dataset", "task"])
def test_of_two_who_rename_one_thing_at_once_one_does(pair: tuple[Any, Any], kind: str) -> None:
    one, two = pair
    one.execute(new_name(kind, "digits", "numerals"))
    assert "nothing of this kind has this name" in second(one, two, new_name(kind, "digits", "figures"))
    two.rollback()
    assert two.execute(f"SELECT name FROM {kind}").fetchall() == [("numerals",)]
    assert two.execute("SELECT name FROM renaming").fetchall() == [("numerals",)]


@pytest.mark.postgres
def test_a_name_is_not_taken_in_the_moment_in_which_it_is_given_up(pair: tuple[Any, Any]) -> None:
    one, two = pair
    one.execute(new_name("dataset", "digits", "numerals"))
    taken = "INSERT INTO series (kind, name, next_version) VALUES ('dataset', 'digits', 1)"
    assert "belonged to something else" in second(one, two, taken)


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["dataset", "task"])
def test_what_is_registered_under_a_name_that_is_being_given_up_is_refused_by_name(
    pair: tuple[Any, Any], postgresql_url: str, kind: str
) -> None:
    ledger = sessions(connect(postgresql_url))
    register: Any = {"dataset": world.dataset, "task": world.task}[kind]
    one, _ = pair
    one.execute(new_name(kind, "digits", "numerals"))
    with ThreadPoolExecutor(1) as pool:

        def work() -> None:
            with ledger.begin() as session:
                register(session, "digits", classes=2)

        late = pool.submit(work)
        while not one.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]:
            pass
        one.commit()
        with pytest.raises(errors.NameTaken, match="digits"):
            late.result(30)


def test_one_result_that_is_published_twice_at_once_is_one_version(
    registry_url: str, ledger: Sessions
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.task(session)
        world.job(session, "job", "digits")
    barrier = threading.Barrier(4)

    def publish(_: int) -> str:
        barrier.wait()
        with ledger.begin() as session:
            return world.publish(session, "job", "digits").ref

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(publish, range(4))) == {"digits@1"}


@pytest.mark.postgres
def test_who_publishes_waits_for_who_publishes_for_the_same_task_and_for_nobody_else(
    postgresql_url: str,
) -> None:
    ledger = sessions(connect(postgresql_url))
    with ledger.begin() as session:
        world.backbone(session)
        for name in ("digits", "faces"):
            world.task(session, name)
            world.job(session, f"{name} 1", name)
    with ledger.begin() as first:  # its events are written, and it is not over
        world.publish(first, "digits 1", "digits")
        with ledger.begin() as second:
            second.execute(text("SET LOCAL lock_timeout = '5s'"))
            assert world.publish(second, "faces 1", "faces").ref == "faces@1"
        # The number that the first took is given out again if it fails: so the next waits for its end.
        with pytest.raises(errors.RegistryBusy), ledger.begin() as second:
            bring_in(second, "digits", "200ms")
    ledger.engine.dispose()


def bring_in(session: Session, task: str, patience: str) -> None:
    session.execute(text(f"SET LOCAL lock_timeout = '{patience}'"))
    file = world.sha("from afar")
    blobs.commit(session, file, 10)
    adapters.bring_in(session, task=task, blob_digest=file, parameters=1, provenance={}, metrics={})


def test_threads_write_to_sqlite_in_the_order_in_which_they_came(sqlite_url: str) -> None:
    ledger = sessions(connect(sqlite_url))
    wrote: list[int] = []

    def write(number: int) -> None:
        with ledger.begin() as session:
            world.backbone(session, f"backbone {number}")
            wrote.append(number)

    with ThreadPoolExecutor(8) as pool, ledger.begin():
        for number in range(8):
            pool.submit(write, number)
            while len(ledger._writers._line) < number + 2:
                time.sleep(0.001)
    assert wrote == [*range(8)]


def test_a_thread_writes_within_a_block_that_has_not_written_yet(sqlite_url: str) -> None:
    ledger = sessions(connect(sqlite_url))
    with ledger.begin() as outer:
        with ledger.begin() as inner:
            world.backbone(inner, "first")
        world.backbone(outer, "second")
    with ledger.read() as session:
        assert {each.name for each in backbones.list_all(session)} == {"first", "second"}


def test_who_waited_too_long_to_write_stands_in_nobodys_way(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.session.BUSY_SECONDS", 0.1)
    ledger = sessions(connect(sqlite_url))

    def write(number: int) -> str:
        with ledger.begin() as session:
            return world.backbone(session, f"backbone {number}").name

    with ThreadPoolExecutor(1) as pool:
        with ledger.begin(), pytest.raises(errors.RegistryBusy, match="run this again"):
            pool.submit(write, 1).result()
        assert pool.submit(write, 2).result() == "backbone 2"

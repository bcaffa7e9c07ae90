"""Many at once: one key is one job, a lease has one holder, a firing is one. On both engines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from sqlalchemy import Engine, event, select, text, update

from orchestration import queue
from orchestration.errors import LeaseLost
from orchestration.jobs import DEFAULTS, Capacity, Claim, Order
from orchestration.queue import claiming, clock, limits, recovery, schedules
from registry import datasets
from registry.errors import RegistryBusy
from registry.models import Event, Job, Schedule
from registry.session import Sessions, connect, sessions
from tests import registry_world as recorded

T = TypeVar("T")


@pytest.fixture
def line(ledger: Sessions) -> Sessions:
    """A registry with a backbone and twelve tasks."""
    with ledger.begin() as session:
        recorded.backbone(session)
        for number in range(12):
            recorded.task(session, f"t{number}")
    return ledger


def at_once(url: str, how_many: int, do: Callable[[Sessions, int], T]) -> list[T]:
    """Does it so many times at the same moment, each with a connection of its own."""
    gate = threading.Barrier(how_many)

    def one(number: int) -> T:
        engine = connect(url)
        try:
            made = sessions(engine)
            with made.read() as session:
                session.execute(text("SELECT 1"))
            gate.wait(60)
            return do(made, number)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(how_many) as crowd:
        return list(crowd.map(one, range(how_many)))


def put(line: Sessions, count: int, **given: object) -> list[str]:
    orders = [Order(f"job-{number:05}", kind="verify", **given) for number in range(count)]  # type: ignore[arg-type]
    with line.begin() as session:
        return [job.id for job in queue.enqueue_all(session, orders)]


def take(line: Sessions, **given: object) -> Claim | None:
    with line.begin() as session:
        return queue.claim(session, "me", **given)  # type: ignore[arg-type]


def test_fifty_submissions_with_one_key_at_once_are_one_job(line: Sessions, registry_url: str) -> None:
    def submit(own: Sessions, number: int) -> str:
        with own.begin() as session:
            return queue.enqueue(session, [f"t{number % 2}"], {}, key="once").id

    found = at_once(registry_url, 50, submit)
    assert len(set(found)) == 1
    with line.read() as session:
        assert [job.id for job in queue.list_all(session)] == found[:1]


def test_jobs_that_many_workers_take_at_once_are_each_taken_once(line: Sessions, registry_url: str) -> None:
    accepted = put(line, 40)

    def drain(own: Sessions, number: int) -> list[str]:
        taken: list[str] = []
        while True:
            with own.begin() as session:
                held = queue.claim(session, f"worker {number}")
            if held is None:
                return taken
            with own.begin() as session:
                queue.complete(session, held)
            taken.append(held.job.id)

    taken = at_once(registry_url, 8, drain)
    assert Counter(job for each in taken for job in each) == Counter(accepted)
    with line.read() as session:
        assert {job.state for job in queue.list_all(session)} == {"done"}


def test_needs_that_end_at_once_free_who_waits_for_all_of_them(line: Sessions, registry_url: str) -> None:
    needs = put(line, 6)
    with line.begin() as session:
        waiting = [Order(f"after-{i}", kind="verify", after=tuple(needs[i % 2 :])) for i in range(5)]
        queue.enqueue_all(session, waiting)
    held = [take(line) for _ in needs]

    def end(own: Sessions, number: int) -> None:
        claim = held[number]
        assert claim is not None
        with own.begin() as session:
            queue.complete(session, claim)

    at_once(registry_url, len(needs), end)
    with line.read() as session:
        assert [job.waits for job in queue.list_all(session)] == [0] * 11


def test_who_comes_to_wait_while_a_need_ends_is_not_forgotten(line: Sessions, registry_url: str) -> None:
    (need,) = put(line, 1)
    held = take(line)
    assert held is not None

    def act(own: Sessions, number: int) -> None:
        with own.begin() as session:
            if number == 0:
                queue.complete(session, held)
            else:
                queue.enqueue_all(session, [Order(f"after-{number}", kind="verify", after=(need,))])
                time.sleep(0.01 * number)  # its commit is awaited by whoever ends the need

    at_once(registry_url, 8, act)
    with line.read() as session:
        assert [job.waits for job in queue.list_all(session)] == [0] * 8


def test_workers_that_claim_at_once_do_not_pass_a_limit_together(line: Sessions, registry_url: str) -> None:
    with line.begin() as session:
        limits.put(session, "submitter", "*", 2)
        limits.put(session, "submitter", "ann", 3)
        limits.put(session, "resource", "gpus", 3.5)
    for who in ("ann", "bob", "eve"):
        with line.begin() as session:
            queue.enqueue_all(
                session,
                [Order(f"{who}-{i}", kind="verify", submitted_by=who, gpus=0.5) for i in range(6)],
            )

    def claim(own: Sessions, number: int) -> Claim | None:
        with own.begin() as session:
            return queue.claim(session, f"worker {number}")

    found = [held for held in at_once(registry_url, 12, claim) if held is not None]
    assert Counter(held.job.submitted_by for held in found) == {"ann": 3, "bob": 2, "eve": 2}
    with line.begin() as session:
        limits.put(session, "resource", "gpus", 4)
        queue.complete(session, found[0])
    again = take(line)
    assert again is not None
    assert again.job.submitted_by == found[0].job.submitted_by


def test_a_backbone_that_may_have_one_job_has_one(line: Sessions) -> None:
    with line.begin() as session:
        recorded.backbone(session, "other")
        recorded.task(session, "elsewhere", on="other")
        limits.put(session, "backbone", "dit", 1)
        for name in ("t0", "t1", "elsewhere"):
            queue.enqueue(session, [name], {})
    first, second, third = take(line), take(line), take(line)
    assert first is not None
    assert second is not None
    assert (first.job.tasks, second.job.tasks, third) == (("t0",), ("elsewhere",), None)
    with line.begin() as session:
        queue.complete(session, first)
    fourth = take(line)
    assert fourth is not None
    assert fourth.job.tasks == ("t1",)


def test_a_large_job_is_not_passed_over_for_ever(line: Sessions) -> None:
    total = Capacity(4, 0, 0)
    with line.begin() as session:
        queue.enqueue_all(session, [Order("small-0", kind="verify"), Order("large", kind="verify", cpus=4)])
        queue.enqueue_all(session, [Order(f"small-{i}", kind="verify") for i in range(1, 4)])
    first = take(line, capacity=total, total=total)
    second = take(line, capacity=Capacity(3, 0, 0), total=total)
    assert first is not None
    assert second is not None
    assert (first.job.id, second.job.id) == ("small-0", "small-1")
    with line.begin() as session:
        waited = clock.later(-claiming.PATIENCE_SECONDS - 1)
        session.execute(update(Job).where(Job.id == "large").values(run_at=waited))
    assert take(line, capacity=Capacity(2, 0, 0), total=total) is None
    assert take(line, capacity=Capacity(2, 0, 0), total=Capacity(2, 0, 0)) is not None, (
        "it would never fit here"
    )
    with line.begin() as session:
        queue.complete(session, first)
        queue.complete(session, second)
    held = take(line, capacity=total, total=total)
    assert held is not None
    assert held.job.id == "large"


def test_the_bytes_of_a_zombie_are_refused_in_every_form(line: Sessions) -> None:
    put(line, 1)
    with line.begin() as session:
        stale = queue.claim(session, "one", lease_seconds=0)
        queue.give_up(session)
    assert stale is not None
    held = take(line)
    assert held is not None
    assert held.fence > stale.fence
    ways: list[Callable[..., object]] = [
        lambda session: queue.heartbeat(session, stale),
        lambda session: queue.complete(session, stale),
        lambda session: queue.release(session, stale),
        lambda session: queue.fail(session, stale, "late", may_heal=True),
        lambda session: queue.cancelled(session, stale),
        lambda session: queue.paused(session, stale),
    ]
    for write in ways:
        with pytest.raises(LeaseLost), line.begin() as session:
            write(session)
    with line.begin() as session:
        queue.complete(session, held)


# --- schedules ---


def fired(line: Sessions) -> list[tuple[str, ...]]:
    with line.read() as session:
        return [job.tasks for job in queue.list_all(session)]


def due(line: Sessions, days: float = 3) -> None:
    with line.begin() as session:
        session.execute(update(Schedule).values(next_run_at=clock.later(-days * 86400)))


def test_a_schedule_fires_once_however_many_workers_look_and_however_much_was_missed(
    line: Sessions, registry_url: str
) -> None:
    with line.begin() as session:
        made = schedules.add(
            session, "nightly", "0 3 * * *", ["t0", "t1"], {"steps": 3}, timezone="Europe/Berlin"
        )
    assert made.next_run_at > made.created_at
    due(line)

    def fire(own: Sessions, _: int) -> int:
        with own.begin() as session:
            return len(queue.fire_due(session))

    assert sorted(at_once(registry_url, 8, fire)) == [0] * 7 + [2]
    assert fired(line) == [("t0",), ("t1",)]
    due(line, days=1)
    with line.begin() as session:
        assert queue.fire_due(session) == [], "its tasks are busy still"
        skipped = session.scalars(select(Event.payload).where(Event.kind == "schedule.skipped")).all()
    assert [each["error"] for each in skipped] == ["it is busy still"] * 2


def test_only_tasks_whose_dataset_changed_are_trained_and_on_its_new_version(line: Sessions) -> None:
    with line.begin() as session:
        recorded.learnt(session, "t0")
        recorded.learnt(session, "t1")
        schedules.add(session, "nightly", "0 3 * * *", ["t0", "t1"], {}, when_changed=True)
    due(line)
    with line.begin() as session:
        assert queue.fire_due(session) == []
        newer = recorded.dataset(session, "t1", salt="more images")
        recorded.dataset(session, "t0", classes=4, salt="other classes")
        assert newer.version == 2
    due(line, days=1)
    with line.begin() as session:
        (job,) = queue.fire_due(session)
        chosen = session.execute(text("SELECT dataset_id FROM job_task WHERE job_id = :job"), {"job": job.id})
        assert datasets.by_id(session, chosen.scalar_one()).ref == "t1@2"
    assert job.tasks == ("t1",)


def test_a_paused_schedule_misses_its_times_and_goes_on_with_the_next(line: Sessions) -> None:
    with line.begin() as session:
        schedules.add(session, "often", "* * * * *", ["t0"], {})
        schedules.pause(session, "often")
    due(line)
    with line.begin() as session:
        assert queue.fire_due(session) == []
        resumed = schedules.pause(session, "often", paused=False)
        assert queue.fire_due(session) == []
    assert resumed.next_run_at > resumed.created_at


# --- the database's clock jumps ---


@pytest.fixture
def jump(line: Sessions, engine: Engine) -> Callable[[float], None]:
    """Moves the database's clock, as seen by every connection from now on."""
    moved = [0.0]
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def shifted(
            _connection: object, _cursor: object, statement: str, parameters: object, *_: object
        ) -> tuple[str, object]:
            return statement.replace("'now'", f"'now', '{moved[0]} seconds'"), parameters
    else:
        with line.begin() as session:
            session.execute(text("CREATE SCHEMA moved"))
            session.execute(text("CREATE TABLE moved.shift (by interval)"))
            session.execute(text("INSERT INTO moved.shift VALUES ('0 s')"))
            session.execute(
                text(
                    "CREATE FUNCTION moved.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS "
                    "'SELECT pg_catalog.statement_timestamp() + by FROM moved.shift'"
                )
            )

        @event.listens_for(engine, "begin")
        def first_of_all(connection: object) -> None:
            connection.exec_driver_sql("SET LOCAL search_path = moved, pg_catalog, public")  # type: ignore[attr-defined]

    def by(seconds: float) -> None:
        moved[0] = seconds
        if engine.dialect.name == "postgresql":
            with line.begin() as session:
                session.execute(text("UPDATE moved.shift SET by = make_interval(secs => :s)"), {"s": seconds})

    return by


def look(line: Sessions) -> str:
    with line.begin() as session:
        queue.give_up(session)
        return queue.get(session, "job-00000").state


def test_a_clock_that_jumps_two_hours_ahead_takes_no_job_from_a_worker_that_lives(
    line: Sessions, jump: Callable[[float], None]
) -> None:
    put(line, 1)
    held = take(line)
    assert held is not None
    jump(7200)
    assert look(line) == "running", "a lease that ran out so long ago is not believed at once"
    with line.begin() as session:
        queue.heartbeat(session, held)
    jump(7200 + recovery.GRACE_SECONDS + 1)
    assert look(line) == "running"
    with line.begin() as session:
        queue.complete(session, held)


def test_a_worker_that_died_before_the_clock_jumped_ahead_is_replaced_after_the_grace(
    line: Sessions, jump: Callable[[float], None]
) -> None:
    put(line, 1)
    stale = take(line)
    jump(7200)
    assert look(line) == "running"
    jump(7200 + recovery.GRACE_SECONDS + 1)
    assert look(line) == "queued"
    held = take(line)
    assert held is not None
    assert stale is not None
    with pytest.raises(LeaseLost), line.begin() as session:
        queue.complete(session, stale)


def test_a_lease_does_not_live_for_ever_where_the_clock_jumps_an_hour_back(
    line: Sessions, jump: Callable[[float], None]
) -> None:
    put(line, 1)
    assert take(line) is not None
    jump(-3600)
    assert look(line) == "running"
    jump(-3600 + recovery.GRACE_SECONDS + 1)
    assert look(line) == "queued"


# --- the database is busy ---


def test_a_sqlite_that_is_locked_past_its_time_out_is_a_clear_error_and_loses_nothing(
    line: Sessions, registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not registry_url.startswith("sqlite"):
        pytest.skip("PostgreSQL locks rows, not the file")
    put(line, 1)
    held = take(line)
    assert held is not None
    monkeypatch.setattr("registry.session.BUSY_SECONDS", 0.2)
    impatient = sessions(connect(registry_url))
    with line.begin() as session:
        session.execute(update(Job).values(priority=1))
        with pytest.raises(RegistryBusy, match=r"busy|held"), impatient.begin() as other:
            queue.heartbeat(other, held)
    with impatient.begin() as other:
        assert queue.heartbeat(other, held) is None
        queue.complete(other, held)
    impatient.engine.dispose()
    with line.read() as session:
        assert [(job.state, job.priority) for job in queue.list_all(session)] == [("done", 1)]


# --- ten thousand ---


def test_ten_thousand_jobs_are_accepted_in_few_statements_and_claimed_through_an_index(
    line: Sessions, engine: Engine
) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    put(line, 10_000)
    assert len(statements) < 200
    statements.clear()
    held = take(line)
    assert held is not None
    assert held.job.id == "job-00000"
    if engine.dialect.name == "postgresql":  # one, given to the driver as it is
        assert statements == []
        statements.append(claiming.usual("postgresql", Capacity(), tuple(DEFAULTS.items())).sql)  # type: ignore[attr-defined]
    assert len(statements) <= 6
    taking = next(each for each in statements if "UPDATE job" in each)
    inner = taking[taking.index("(SELECT job.id") + 1 : taking.index("LIMIT")]
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE job")
        where = inner.replace("%%", "%") + " LIMIT 1"
        plan = "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(explain + where))
    assert "ix_job_ready" in plan, plan
    assert "SCAN job\n" not in plan

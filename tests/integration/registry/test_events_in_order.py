"""Who follows the events by number misses none, in whatever order those who write them commit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Event as Flag

import pytest
from sqlalchemy import event as alchemy
from sqlalchemy import text
from sqlalchemy.orm import Session

from registry import events
from registry.session import Sessions, connect, sessions

pytestmark = pytest.mark.postgres


@pytest.fixture
def made(postgresql_url: str) -> Iterator[Sessions]:
    opened = sessions(connect(postgresql_url))
    yield opened
    opened.engine.dispose()


def told(made: Sessions, after: int) -> list[str]:
    return [event.kind for event in events.follow(made, after)]


def last(made: Sessions) -> int:
    return max((event.id for event in events.follow(made, limit=1000)), default=0)


def begin_to_write(session: Session) -> None:
    """The database numbers a transaction when it first writes."""
    session.execute(text("SELECT pg_current_xact_id()"))


def test_an_event_waits_for_one_that_has_a_lower_number_and_commits_later(made: Sessions) -> None:
    after = last(made)
    with made.begin() as slow:
        events.append(slow, "thing.slow", None, {})
        with made.begin() as quick:
            events.append(quick, "thing.quick", None, {})
        assert told(made, after) == []
    assert told(made, after) == ["thing.slow", "thing.quick"]
    assert told(made, last(made)) == []


def test_an_event_waits_for_a_lower_one_whose_transaction_began_later(made: Sessions) -> None:
    after = last(made)
    with ExitStack() as both:
        quick, slow = ExitStack(), both.enter_context(ExitStack())
        first, second = quick.enter_context(made.begin()), slow.enter_context(made.begin())
        begin_to_write(first)
        begin_to_write(second)
        events.append(second, "thing.slow", None, {})
        events.append(first, "thing.quick", None, {})
        quick.close()
        assert told(made, after) == []
    assert told(made, after) == ["thing.slow", "thing.quick"]


def test_an_event_does_not_wait_for_a_number_that_was_taken_back(made: Sessions) -> None:
    after = last(made)
    with suppress(ZeroDivisionError), made.begin() as slow:
        events.append(slow, "thing.never", None, {})
        with made.begin() as quick:
            events.append(quick, "thing.quick", None, {})
        assert told(made, after) == []
        raise ZeroDivisionError
    assert told(made, after) == ["thing.quick"]


def test_an_event_does_not_wait_for_those_who_do_not_write_events(made: Sessions) -> None:
    after = last(made)
    with suppress(ZeroDivisionError), made.begin() as never:
        events.append(never, "thing.never", None, {})
        raise ZeroDivisionError
    with made.begin() as other:
        begin_to_write(other)
        with made.begin() as quick:
            events.append(quick, "thing.quick", None, {})
        assert told(made, after) == ["thing.quick"]


@pytest.mark.parametrize("place", range(4))
def test_an_event_that_is_committed_while_somebody_looks_is_told_the_next_time(
    made: Sessions, postgresql_url: str, place: int
) -> None:
    """Before each statement of one who looks, another writer takes a number and a later one is committed."""
    after, writers = last(made), sessions(connect(postgresql_url))
    slow, statements, heard = ExitStack(), 0, list[str]()
    first = slow.enter_context(writers.begin())
    events.append(first, "thing.first", None, {})
    with writers.begin() as session:
        events.append(session, "thing.second", None, {})

    @alchemy.listens_for(made.engine, "before_cursor_execute")
    def meddle(*_: object) -> None:
        nonlocal statements
        statements += 1
        if statements == place + 1:
            slow.close()
            third = slow.enter_context(writers.begin())
            events.append(third, "thing.third", None, {})
            with writers.begin() as session:
                events.append(session, "thing.fourth", None, {})

    for _ in range(2):
        found = events.follow(made, after)
        heard += [each.kind for each in found]
        after = max([after, *(each.id for each in found)])
    slow.close()
    heard += told(made, after)
    assert heard == ["thing.first", "thing.second", "thing.third", "thing.fourth"]
    writers.engine.dispose()


def test_two_followers_hear_all_of_eight_writers_at_once(made: Sessions) -> None:
    """Some take their numbers back, some write long before or after, and nobody waits for them for ever."""
    begun, over = last(made), Flag()

    def write(seed: int) -> int:
        chosen, committed = random.Random(seed), 0
        for _ in range(60):
            with suppress(ZeroDivisionError), made.begin() as session:
                if chosen.random() < 0.5:
                    begin_to_write(session)
                for _ in range(chosen.randrange(1, 3)):
                    events.append(session, "thing.written", None, {})
                if chosen.random() < 0.2:
                    raise ZeroDivisionError
                session.execute(text(f"SELECT pg_sleep({chosen.random() / 100})"))
                committed += 1
        return committed

    def follow(limit: int) -> list[int]:
        after, heard = begun, list[int]()
        while True:
            ending = over.is_set()
            found = events.follow(made, after, limit=limit)
            heard += [each.id for each in found]
            after = heard[-1] if heard else after
            if ending and not found:
                return heard

    with ThreadPoolExecutor(10) as threads:
        following = [threads.submit(follow, limit) for limit in (5, 500)]
        writing = [threads.submit(write, seed) for seed in range(8)]
        assert all(each.result() > 0 for each in writing)
        over.set()
        heard = [each.result() for each in following]
    with made.read() as session:
        there = [each.id for each in events.list_after(session, begun, limit=10_000)]
    assert heard == [there, there]

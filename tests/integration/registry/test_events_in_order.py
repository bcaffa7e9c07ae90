"""Who follows the events by number misses none, in whatever order those who write them commit."""

from __future__ import annotations

from contextlib import suppress

import pytest

from registry import events
from registry.session import Sessions, connect, sessions

pytestmark = pytest.mark.postgres


@pytest.fixture
def made(postgresql_url: str) -> Sessions:
    return sessions(connect(postgresql_url))


def told(made: Sessions, after: int) -> list[str]:
    with made.read() as session:
        return [event.kind for event in events.list_after(session, after)]


def last(made: Sessions) -> int:
    with made.read() as session:
        return max((event.id for event in events.list_after(session, limit=1000)), default=0)


def test_an_event_waits_for_one_that_has_a_lower_number_and_commits_later(made: Sessions) -> None:
    after = last(made)
    with made.begin() as slow:
        events.append(slow, "thing.slow", None, {})
        with made.begin() as quick:
            events.append(quick, "thing.quick", None, {})
        assert told(made, after) == []
    assert told(made, after) == ["thing.slow", "thing.quick"]
    assert told(made, last(made)) == []
    made.engine.dispose()


def test_an_event_does_not_wait_for_a_number_that_was_taken_back(made: Sessions) -> None:
    after = last(made)
    with suppress(ZeroDivisionError), made.begin() as slow:
        events.append(slow, "thing.never", None, {})
        with made.begin() as quick:
            events.append(quick, "thing.quick", None, {})
        assert told(made, after) == []
        raise ZeroDivisionError
    assert told(made, after) == ["thing.quick"]
    made.engine.dispose()

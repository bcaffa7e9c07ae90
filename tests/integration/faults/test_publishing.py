"""A publication that is cut off anywhere leaves nothing visible or everything; and it can be made again."""

from __future__ import annotations

import signal
from datetime import timedelta

import pytest

from registry import blobs
from registry.collection import collect
from registry.columns import utc_now
from registry.models import Upload
from tests.integration.faults.conftest import Walker, World, on_both_engines, registry_away

pytestmark = [pytest.mark.slow, on_both_engines]
BEFORE = ("blob-put:1", "blob-put:2", "uploaded", "row:1", "row:2", "row:3", "row:4", "before-commit")
"""Every point of a publication of one adapter, in their order; only after-commit comes after."""


def walk(walker: Walker, made: World) -> None:
    """Kills a publication at one point after the other, then lets one through that is killed as it ends."""
    for point in BEFORE:
        assert walker.publish(made, failpoint=f"{point}=kill") == {"signal": signal.SIGKILL}, point
        made.assert_nothing_is_visible()
    assert walker.publish(made, failpoint="after-commit=kill") == {"signal": signal.SIGKILL}
    made.assert_published_once()
    assert made.outcomes() == ["lost"] * len(BEFORE) + ["done"]


def assert_garbage_is_collected(made: World) -> None:
    """Leases of the dead keep their bytes while they last; then what nobody needs goes, and nothing else."""
    services = made.services
    with services.sessions.begin() as session:
        assert len(blobs.live_uploads(session)) == len(BEFORE) + 1
        session.query(Upload).update({"expires_at": utc_now() - timedelta(hours=2)})
    stray = services.store.put_bytes(b"bytes that no row ever came to name")
    gone = collect(services.sessions, services.store, grace_seconds=0).gone
    assert [each.digest for each in gone] == [stray]
    with services.sessions.read() as session:
        assert session.query(Upload).count() == 0
    made.assert_published_once()


def test_killed_at_any_point_it_leaves_nothing_or_everything(walker: Walker, made: World) -> None:
    walk(walker, made)
    assert_garbage_is_collected(made)


def test_killed_at_any_point_it_leaves_nothing_or_everything_with_blobs_in_s3(
    walker: Walker, made_on_s3: World
) -> None:
    walk(walker, made_on_s3)
    assert_garbage_is_collected(made_on_s3)


def test_the_write_of_a_zombie_is_refused_after_its_successor_finished(walker: Walker, made: World) -> None:
    zombie = walker.publish(made, failpoint="uploaded=stop")["stopped"]
    made.assert_nothing_is_visible()
    assert walker.publish(made) == {"published": ["shapes@1"]}
    told = walker.resume(zombie)
    assert told["error"] in ("LeaseLost", "StaleFence"), told
    made.assert_published_once()
    assert made.outcomes() == ["lost", "done"]


def test_the_write_of_a_zombie_is_refused_while_its_successor_is_at_work(walker: Walker, made: World) -> None:
    zombie = walker.publish(made, failpoint="uploaded=stop")["stopped"]
    successor = walker.publish(made, failpoint="uploaded=stop")["stopped"]
    assert walker.resume(zombie)["error"] in ("LeaseLost", "StaleFence")
    made.assert_nothing_is_visible()
    assert walker.resume(successor) == {"published": ["shapes@1"]}
    made.assert_published_once()


def test_a_registry_that_is_away_as_the_job_ends_is_asked_again_until_it_is_back(
    walker: Walker, made: World
) -> None:
    told = walker.publish(made, failpoint="row:1=stop, row:2=stop", busy_seconds=1)
    with registry_away(made):
        assert walker.resume(told["stopped"]) == told  # it was refused, and has begun anew
    assert walker.resume(told["stopped"]) == {"published": ["shapes@1"]}
    made.assert_published_once()
    assert made.outcomes() == ["done"]


def test_a_full_disk_is_one_clear_error_and_it_works_once_room_was_made(walker: Walker, made: World) -> None:
    told = walker.publish(made, room_bytes=2048)
    # PostgreSQL has a disk of its own here; SQLite's is the one that is full, and comes before the blobs.
    engine = made.services.sessions.engine.dialect.name
    assert told["error"] == {"sqlite": "RegistryFull", "postgresql": "StorageFull"}[engine], told
    assert "room" in told["text"] or "full" in told["text"], told
    made.assert_nothing_is_visible()
    assert list(made.services.store.leftovers()) == []
    assert walker.publish(made) == {"published": ["shapes@1"]}
    made.assert_published_once()


def test_a_disk_that_fills_up_before_the_rows_are_written_leaves_none_of_them(
    walker: Walker, made: World
) -> None:
    told = walker.publish(made, room_bytes=2048, full_at="uploaded")
    if made.services.sessions.engine.dialect.name == "postgresql":
        assert told == {"published": ["shapes@1"]}  # its server's disk is another
    else:
        assert told["error"] == "RegistryFull", told
        made.assert_nothing_is_visible()
        assert walker.publish(made) == {"published": ["shapes@1"]}
    made.assert_published_once()

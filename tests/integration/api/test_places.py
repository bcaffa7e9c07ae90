"""Where things lie on the service's machine is told to its operator, and to nobody else over HTTP."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.routing import APIRoute

from affinery_app.api.application import NOUNS
from affinery_app.api.rights import RIGHTS, SAFE
from affinery_app.dashboard.routes import OPERATE, READ
from affinery_app.settings import FILE, Settings
from affinery_app.wiring import Workspace
from orchestration import additions, chores, composing, queue, scheduling
from orchestration.jobs import JobRecord
from orchestration.queue import holding
from orchestration.services import Services
from registry import adapters, backbones, datasets, tokens
from tests import learning_world as world
from tests.command_line import typed
from tests.integration.api.conftest import serving
from tests.learnt_space import learn

HIDDEN = "zq-hidden-place"
NAMES = {
    "backbones": ["tiny", "other"],
    "datasets": ["shapes", "gone", "changed"],
    "tasks": ["shapes", "gone", "changed", "dots"],
    "adapters": ["shapes@1"],
    "lineage": ["adapter:shapes@1", "export:alone", "dataset:gone"],
    "tags": ["shapes@1"],
    "notes": ["shapes@1"],
    "renamings": ["composition:alone"],
    "compositions": ["alone"],
    "exports": ["alone", "alone@1"],
}
PARTS = {"path": ["bundle.json", "manifest.json"], "name": ["samples.png"]}


@pytest.fixture
def hidden(
    tmp_path: Path,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Services]:
    """A workspace in a folder whose name nobody says by chance; a task of it is learnt and composed."""
    import torch

    from affinery.backbones.files import load_backbone, save_backbone

    monkeypatch.setattr(holding, "RETRY_SECONDS", 0.01)
    folder = tmp_path / HIDDEN / "space"
    services = world.make_space(folder, sqlite_template, mlflow_template, tiny_backbone)
    for seed, name in enumerate(("shapes", "gone", "changed", "unread")):
        world.add_dataset(services, world.image_folder(folder.parent / name, "x", "y", seed=seed), name)
    world.schedule(services, "shapes", steps=2)
    learn(services, folder.parent / "learnt")
    composing.compose_tasks(services.sessions, "alone", ["shapes"])
    other = load_backbone(tiny_backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    save_backbone(other, folder.parent / "other")
    additions.add_backbone(services.sessions, services.store, folder.parent / "other", "other")
    yield services
    services.sessions.engine.dispose()


def work(services: Services) -> None:
    """Until nothing is left that could run."""
    worker = world.worker_here(services, world.Heard())
    for _ in range(60):
        if worker.run_next() is None:
            with services.sessions.read() as session:
                if not [job for job in queue.unfinished(session) if job.state == "queued"]:
                    return


def failed(services: Services) -> dict[str, JobRecord]:
    """Jobs of every kind, most after something that they need was taken away. → by what is wrong"""
    sessions, made = services.sessions, dict[str, JobRecord]()

    def order(name: str, chore: chores.Chore) -> None:
        made[name] = chores.schedule(sessions, chore).job

    order("exported", chores.Export(composition="alone"))
    out = services.data.parent.parent / "out"
    order("exported elsewhere", chores.Export(composition="alone", out=str(out)))
    order("no room", chores.Export(composition="alone", format="dit", out=str(out)))
    work(services)
    with sessions.read() as session:
        gone, changed = datasets.get(session, "gone"), datasets.get(session, "changed")
        other, [learnt] = backbones.get(session, "other"), adapters.list_all(session)
    made["dataset gone"] = world.schedule(services, "gone")
    made["waits for it"] = world.schedule(services, "unread", after=(made["dataset gone"].id,))
    made["dataset changed"] = world.schedule(services, "changed")
    made["backbone gone"] = scheduling.schedule(
        sessions,
        ["dots"],
        ["shapes"],
        backbone="other",
        kind="affiner",
        config=world.KIND,
        recipe=world.RECIPE,
    )
    with sessions.begin() as session:  # it fails for good, and not again and again
        session.connection().exec_driver_sql("UPDATE job SET max_attempts = 2")
    for name in (gone.dvc_path, ".dvc"):
        shutil.rmtree(services.data / name)
    manifest = services.data / changed.dvc_path / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    for digest in (other.blob_digest, learnt.blob_digest):
        services.store.path(digest).unlink()
    services.store.path_of(learnt.blob_digest).mkdir()  # type: ignore[attr-defined]
    order("adapter gone", chores.Evaluation(adapters=["shapes"], samples=4))
    order("nothing remembered", chores.Retention(backbone="tiny", samples=4))
    order("moved", chores.Rebase(old="tiny", new="other"))
    order("verified", chores.Verification())
    work(services)
    return {name: world.job(services, job.id) for name, job in made.items()}


def every_get(jobs: list[str]) -> Iterator[str]:
    """Every address that reads, with everything that there is in its place."""
    routes = [route for noun in NOUNS for route in noun.router.routes if isinstance(route, APIRoute)]
    paths = [
        re.sub(r":path}", "}", route.path)
        for route in routes
        if (route.methods or set()) <= SAFE and RIGHTS[route.name].scope in (None, "read")
    ]
    yield "/v1/diff?left=shapes&right=shapes@1"
    for path in [*paths, *READ]:
        noun = path.split("/")[2 if path.startswith("/v1") else 1]
        parts = re.findall(r"\{(.*?)\}", path)
        named = [PARTS.get(part) or (jobs if noun == "jobs" else NAMES.get(noun, [])) for part in parts]
        for values in product(*([*each, "nothing"] for each in named)):
            yield path.format(**{part: quote(value) for part, value in zip(parts, values, strict=True)})


def test_only_the_operator_is_told_over_http_in_which_folder_the_service_works(
    hidden: Services, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = failed(hidden)
    assert [name for name, job in jobs.items() if job.state not in ("done", "dead")] == []
    wrong = {"dataset gone", "dataset changed", "backbone gone", "adapter gone", "nothing remembered"}
    assert {name for name, job in jobs.items() if HIDDEN in str(job.error_here)} == wrong | {"no room"}
    folder = hidden.data.parent
    (folder / FILE).write_text("")  # what makes it a workspace to commands, and to the page of its health
    with hidden.sessions.begin() as session:
        reader, scheduler, operator = (
            tokens.create(session, scope, scope, by="ann")[1] for scope in ("read", "schedule", "admin")
        )
    log = folder / "runs" / jobs["adapter gone"].id / f"attempt-{jobs['adapter gone'].fence}" / "driver.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"It lies in {folder}.")
    with serving(Workspace(folder, Settings())) as service:
        found = {}
        for path in every_get([job.id for job in jobs.values()]):
            reply = service.ask("GET", path, Authorization=f"Bearer {reader}")
            whole = json.dumps(reply.headers) + reply.body.decode(errors="replace")
            if HIDDEN in whole:
                found[path] = whole[max(0, whole.index(HIDDEN) - 200) :][:300]
        assert found == {}
        told = dict.fromkeys(OPERATE, operator)
        told[f"/v1/jobs/{jobs['adapter gone'].id}/log"] = scheduler  # who schedules has to see why it failed
        for path, token in told.items():
            assert service.ask("GET", path, Authorization=f"Bearer {reader}").status == 403
            reply = service.ask("GET", path, Authorization=f"Bearer {token}")
            assert reply.status == 200
            assert HIDDEN in reply.body.decode()
    capfd.readouterr()
    for name in (*wrong, "exported elsewhere"):
        assert typed("job", "show", jobs[name].id, "--json", "--workspace", folder) == 0
        assert HIDDEN in capfd.readouterr().out


def test_a_page_of_health_is_offered_to_who_may_see_it(hidden: Services) -> None:
    with hidden.sessions.begin() as session:
        shown = {scope: tokens.create(session, scope, scope, by="ann")[1] for scope in ("read", "admin")}
    with serving(Workspace(hidden.data.parent, Settings())) as service:
        for scope, token in shown.items():
            page = service.ask("GET", "/events", Authorization=f"Bearer {token}").body
            assert (b'href="/health"' in page) == (scope == "admin")

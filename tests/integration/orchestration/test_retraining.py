"""What is new beneath tasks, and how they follow: another backbone, another version of their dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from affinery.backbones.files import load_backbone, save_backbone
from affinery.errors import ConfigInvalid
from orchestration import additions, chores, queue, scheduling
from orchestration.rebase import plan_rebase, rebase
from orchestration.services import Services
from orchestration.upgrades import changed_classes, upgrade
from orchestration.worker import Worker
from registry import adapters, backbones, datasets, evaluations, lineage, renaming, tasks, verification
from registry.session import connect, sessions
from tests import learning_world as world
from tests.learnt_space import learn
from tests.postgres import copy_of, named, on_server
from tests.tiny_unets import built, unet_spec


@dataclass(frozen=True)
class Template:
    """A workspace to be copied. database: the PostgreSQL that holds its registry, where that is no file."""

    folder: Path
    server: str | None = None
    database: str | None = None

    def copy(self, folder: Path) -> Iterator[Services]:
        shutil.copytree(self.folder, folder)
        here = world.open_space(folder)
        if self.server is None or self.database is None:
            yield here
        else:
            for url in copy_of(self.server, self.database):
                yield replace(here, sessions=sessions(connect(url)))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def learnt(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Template:
    """Two tasks on tiny@1, of which one is learnt, and a tiny@2 of other weights; on either engine."""
    import torch

    folder = tmp_path_factory.mktemp("learnt")
    made = Template(folder / "space")
    services = world.make_space(made.folder, sqlite_template, mlflow_template, tiny_backbone)
    if request.param == "postgresql":
        server, empty = (request.getfixturevalue(f"postgres_{what}") for what in ("url", "template"))
        made = Template(made.folder, server, "affinery_retraining")
        on_server(server, f"CREATE DATABASE {made.database} TEMPLATE {empty}")
        services = replace(services, sessions=sessions(connect(named(server, "affinery_retraining"))))
        additions.add_backbone(services.sessions, services.store, tiny_backbone, "tiny")
    for seed, name in enumerate(("shapes", "shades")):
        world.add_dataset(services, world.image_folder(folder / name, "x", "y", seed=seed), name)
        world.schedule(services, name, steps=2)
    learn(services, folder / "files")
    newer = load_backbone(tiny_backbone)
    with torch.no_grad():
        for parameter in newer.parameters():
            parameter.add_(0.01)
    save_backbone(newer, folder / "newer")
    additions.add_backbone(services.sessions, services.store, folder / "newer", "tiny")
    services.sessions.engine.dispose()
    return made


@pytest.fixture
def space(learnt: Template, tmp_path: Path) -> Iterator[Services]:
    """A copy of it."""
    for services in learnt.copy(tmp_path / "space"):
        yield services
        services.sessions.engine.dispose()


def test_a_new_version_of_a_backbone_is_made_from_the_one_before(space: Services) -> None:
    with space.sessions.read() as session:
        newer = backbones.get(session, "tiny")
        assert (newer.ref, newer.parent) == ("tiny@2", "tiny@1")
        edges = lineage.ancestors(session, newer.node_id, roles=["parent"]).edges
        assert [edge.role for edge in edges] == ["parent"]


def test_tasks_get_successors_with_their_classes_and_what_is_busy_is_told(
    space: Services, tmp_path: Path
) -> None:
    planned = rebase(space.sessions, space.store, "tiny@1", "tiny@2", dry_run=True)
    assert [(step.task, step.action) for step in planned.steps] == [
        ("shapes", "schedule"),
        ("shades", "refused"),
    ]
    done = rebase(space.sessions, space.store, "tiny@1", "tiny@2", given={"steps": 3})
    assert done.steps[0].warm_start == "shapes@1"
    assert done.steps[0].fresh == ()
    assert "shapes" not in [step.task for step in done.steps if step.action == "refused"]
    assert "scheduled" in done.steps[1].reason
    learn(space, tmp_path / "shades")
    with space.sessions.read() as session:
        old, new = tasks.get(session, "shapes"), tasks.get(session, "shapes.tiny-2")
        job = next(job for job in queue.list_all(session) if job.id == done.steps[0].job)
        assert (new.predecessor, new.classes, new.backbone) == ("shapes", old.classes, "tiny@2")
        assert new.config == old.config
        assert job.recipe["steps"] == 3


def test_a_rebase_that_is_done_again_does_only_what_is_left(space: Services, tmp_path: Path) -> None:
    first = rebase(space.sessions, space.store, "tiny@1", "tiny@2")
    again = rebase(space.sessions, space.store, "tiny@1", "tiny@2")
    assert [step.action for step in again.steps] == ["there", "refused"]
    learn(space, tmp_path / "shades")
    (warm,) = learn(space, tmp_path / "shapes")
    assert (warm.ref, warm.warm_start) == ("shapes.tiny-2@1", "shapes@1")
    last = rebase(space.sessions, space.store, "tiny@1", "tiny@2")
    assert [(step.task, step.action) for step in last.steps] == [("shapes", "there"), ("shades", "schedule")]
    assert "learnt there" in last.steps[0].reason
    with space.sessions.read() as session:
        assert len(queue.list_all(session)) == 4
        above = lineage.ancestors(session, warm.node_id)
        refs = {node.full_ref for node in above.nodes.values()}
        assert {"adapter:shapes@1", "backbone:tiny@1", "task:shapes"} <= refs
    assert first.steps[0].job is not None


def test_a_backbone_that_a_kind_does_not_fit_and_shapes_that_differ_are_told(
    space: Services, tmp_path: Path
) -> None:
    save_backbone(built(unet_spec()), tmp_path / "unet")
    additions.add_backbone(space.sessions, space.store, tmp_path / "unet", "unet")
    planned = rebase(space.sessions, space.store, "tiny@1", "unet", only=["shapes"], dry_run=True)
    (step,) = planned.steps
    assert step.warm_start is None
    assert step.action == "refused" or "afresh" in step.reason
    with pytest.raises(ConfigInvalid, match="the same backbone"):
        rebase(space.sessions, space.store, "tiny", "tiny@2")
    with space.sessions.read() as session, pytest.raises(ConfigInvalid, match="is not on tiny@2"):
        plan_rebase(session, space.store, "tiny@2", "tiny@1", only=["shapes"])


def test_a_task_moves_to_the_new_version_of_its_dataset_when_it_is_learnt(
    space: Services, tmp_path: Path
) -> None:
    learn(space, tmp_path / "shades")
    assert [each.step.action for each in upgrade(space.sessions)] == ["there", "there"]
    world.add_dataset(space, world.image_folder(tmp_path / "more", "x", "y", each=9, seed=5), "shapes")
    with space.sessions.read() as session:
        assert datasets.get(session, "shapes").parent == "shapes@1"
    moved = upgrade(space.sessions)
    assert [(each.step.task, each.on, each.to, each.step.action) for each in moved] == [
        ("shapes", "shapes@1", "shapes@2", "schedule"),
        ("shades", "shades@1", "shades@1", "there"),
    ]
    assert upgrade(space.sessions)[0].step.action == "there"
    (record,) = learn(space, tmp_path / "shapes")
    assert (record.ref, record.dataset, record.warm_start) == ("shapes@2", "shapes@2", "shapes@1")
    with space.sessions.read() as session:
        assert tasks.get(session, "shapes").dataset == "shapes@2"
        assert adapters.get(session, "shapes@1").dataset == "shapes@1"
        assert evaluations.list_for(session, "shapes") == []
    again = scheduling.schedule_again(space.sessions, ["shapes"], world.RECIPE)
    assert json.loads(json.dumps(again.recipe))["steps"] == 8
    assert learn(space, tmp_path / "again")[0].dataset == "shapes@2"


def test_a_dataset_version_of_other_classes_is_refused_with_what_changed(
    space: Services, tmp_path: Path
) -> None:
    world.add_dataset(space, world.image_folder(tmp_path / "other", "x", "z", seed=5), "shapes")
    (each,) = upgrade(space.sessions, ["shapes"])
    assert each.step.action == "refused"
    assert "without 'y' and with 'z'" in each.step.reason
    assert changed_classes(["a", "b"], ["b", "a"]) == "the same in another order"
    assert changed_classes(["a"], ["a"]) == ""


def test_a_task_is_trained_again_from_an_adapter_that_is_named(space: Services, tmp_path: Path) -> None:
    learn(space, tmp_path / "shades")
    scheduling.schedule_again(space.sessions, ["shades"], {"steps": 2, "mask_ratio": 0.25}, ["shapes@1"])
    (record,) = learn(space, tmp_path / "again")
    assert (record.ref, record.warm_start) == ("shades@2", "shapes@1")
    scheduling.schedule_again(space.sessions, ["shades"], {"steps": 2, "mask_ratio": 0.25}, ())
    assert learn(space, tmp_path / "last")[0].warm_start == "shades@2"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_worker_upgrades_a_task_and_then_learns_it_anew_on_another_backbone(
    space: Services, tmp_path: Path, local_ray: str
) -> None:
    """The one job waits for the other; meanwhile everything that they name gets another name."""
    world.add_dataset(space, world.image_folder(tmp_path / "more", "x", "y", each=9, seed=5), "shapes")
    with space.sessions.begin() as session:
        (waiting,) = queue.list_all(session, states=("queued",))
        queue.cancel(session, waiting.id)
    (moved,) = upgrade(space.sessions, ["shapes"], given={"steps": 2})
    assert moved.step.job is not None
    anew = chores.Rebase(old="tiny@1", new="tiny@2", only=["shapes"])
    job = chores.schedule(space.sessions, anew, after=[moved.step.job]).job
    with space.sessions.begin() as session:
        renaming.rename(session, "backbone:tiny", "small")
        renaming.rename(session, "dataset:shapes", "forms")
    heard = world.Heard()
    assert Worker(replace(space, ray_address=local_ray), heard).drain() == 3, heard.failures
    assert heard.published_refs == ["shapes@2", "shapes.small-2@1"]
    assert world.job(space, job.id).state == "done"
    with space.sessions.read() as session:
        upgraded, successor = (adapters.get(session, ref) for ref in heard.published_refs)
        assert (upgraded.dataset, upgraded.warm_start) == ("forms@2", "shapes@1")
        assert (successor.backbone, successor.dataset) == ("small@2", "forms@2")
        assert successor.warm_start == "shapes@2"
        assert tasks.get(session, "shapes.small-2").predecessor == "shapes"
    assert verification.verify(space.sessions.engine, space.store).findings == []

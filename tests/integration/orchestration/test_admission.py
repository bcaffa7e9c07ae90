"""Memory that the user has limited: what is larger is refused at once, the rest never pass it together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import update

from affinery_app.wiring import create_workspace
from orchestration import additions, needs, queue, recipes, scheduling
from orchestration.errors import OverLimit
from orchestration.jobs import Order
from orchestration.queue import clock, limits, schedules
from orchestration.services import Services
from registry import backbones, tasks
from registry.models import Schedule
from registry.session import Sessions
from tests import learning_world as world
from tests import registry_world as recorded
from tests.command_line import typed

GIB = 1 << 30
PLAN = """
backbone: tiny
recipe: {steps: 8, batch: 4}
jobs:
  - task: shades
  - task: shapes
    recipe: {batch: 4096}
"""


@pytest.fixture
def space(services: Services, tmp_path: Path) -> Services:
    """A workspace with a backbone and two datasets."""
    for seed, name in enumerate(("shapes", "shades")):
        world.add_dataset(services, world.image_folder(tmp_path / name, "x", "y", seed=seed), name)
    return services


def limited(ledger: Sessions, most: float) -> None:
    with ledger.begin() as session:
        limits.put(session, "resource", "memory_bytes", most)


def least(space: Services, name: str) -> int:
    """What a task that is registered needs at least, with this world's recipe."""
    with space.sessions.read() as session:
        task = tasks.get(session, name)
        backbone = backbones.by_id(session, task.backbone_id)
    recipe = recipes.full_recipe(backbone, world.RECIPE)
    return needs.of_training(backbone, [task], recipe).least_bytes(recipe)


def kept(space: Services) -> tuple[list[str], list[str]]:
    with space.sessions.read() as session:
        return [task.name for task in tasks.list_all(session)], [job.id for job in queue.list_all(session)]


def test_a_training_that_can_never_pass_the_limit_is_refused_and_nothing_of_it_is_written(
    space: Services,
) -> None:
    first = world.schedule(space, "shapes")
    assert first.memory_bytes is None  # no limit: nothing is estimated
    limited(space.sessions, least(space, "shapes") - 1)
    with pytest.raises(OverLimit, match="The training of shades needs at least") as refused:
        world.schedule(space, "shades")
    assert "--set batch=" in str(refused.value)
    assert f"affinery queue limit set resource memory_bytes {least(space, 'shapes')}" in str(refused.value)
    with space.sessions.begin() as session:
        queue.cancel(session, first.id)
    with pytest.raises(OverLimit):
        scheduling.schedule_again(space.sessions, ["shapes"], world.RECIPE)
    with pytest.raises(OverLimit):
        scheduling.schedule_repeatedly(space.sessions, "nightly", "0 3 * * *", ["shapes"], world.RECIPE)
    assert kept(space) == (["shapes"], [first.id])
    with space.sessions.read() as session:
        assert schedules.list_all(session) == []
    limited(space.sessions, least(space, "shapes"))
    assert world.schedule(space, "shades").memory_bytes == least(space, "shapes")


def test_what_a_schedule_fires_counts_under_a_limit_that_was_set_after_it(space: Services) -> None:
    for name in ("shapes", "shades"):
        with space.sessions.begin() as session:
            queue.cancel(session, world.schedule(space, name).id)
    made = scheduling.schedule_repeatedly(
        space.sessions, "nightly", "0 3 * * *", ["shapes", "shades"], world.RECIPE
    )
    assert made.memory_bytes == least(space, "shapes")
    limited(space.sessions, least(space, "shapes"))
    with space.sessions.begin() as session:
        session.execute(update(Schedule).values(next_run_at=clock.later(-60)))
        fired = queue.fire_due(session)
    assert [job.memory_bytes for job in fired] == [least(space, "shapes")] * 2
    assert all(job.payload == {"recipe": made.recipe} for job in fired)


def test_what_a_training_says_itself_stands_where_the_limit_holds_it(space: Services) -> None:
    limited(space.sessions, 1000)

    def asked(size_bytes: int) -> int | None:
        return scheduling.schedule(
            space.sessions,
            ["shapes"],
            ["shapes"],
            backbone="tiny",
            kind="affiner",
            config={},
            recipe={},
            memory_bytes=size_bytes,
        ).memory_bytes

    with pytest.raises(OverLimit, match="says that it takes"):
        asked(1001)
    assert kept(space) == ([], [])
    assert asked(1000) == 1000


def test_trainings_that_say_nothing_do_not_pass_the_limit_together(space: Services) -> None:
    limited(space.sessions, 1e15)
    jobs = [world.schedule(space, name) for name in ("shapes", "shades")]
    limited(space.sessions, 2 * least(space, "shapes") - 1)
    with space.sessions.begin() as session:
        held = queue.claim(session, "one")
        assert held is not None
        assert held.job.id == jobs[0].id
        assert queue.claim(session, "another") is None
        queue.complete(session, held)
        following = queue.claim(session, "another")
        assert following is not None
        assert following.job.id == jobs[1].id


def test_two_jobs_that_pass_the_memory_limit_together_do_not_run_at_once(ledger: Sessions) -> None:
    limited(ledger, 10 * GIB)
    with ledger.begin() as session:
        recorded.backbone(session)
        orders = [Order(f"job-{size}", kind="verify", memory_bytes=size * GIB) for size in (6, 5, 4)]
        queue.enqueue_all(session, orders)
        with pytest.raises(OverLimit, match="says that it takes 11 GiB"):
            queue.enqueue_all(session, [Order("job-11", kind="verify", memory_bytes=11 * GIB)])
    first, second, third = [queue.take(ledger, "me") for _ in range(3)]
    assert first is not None
    assert second is not None
    assert (first.job.id, second.job.id, third) == ("job-6", "job-4", None)
    with ledger.begin() as session:
        queue.complete(session, first)
    last = queue.take(ledger, "me")
    assert last is not None
    assert last.job.id == "job-5"


def test_a_plan_with_one_training_too_large_is_refused_whole_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    space, _ = create_workspace(tmp_path / "affinery-workspace")
    additions.add_backbone(
        space.sessions, space.store, world.tiny_backbone(tmp_path / "tiny.safetensors"), "tiny"
    )
    with space.sessions.begin() as session:
        for name in ("shapes", "shades"):
            recorded.dataset(session, name)
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduling, "check_dataset", lambda *given: None)  # their files are not there
    assert typed("queue", "limit", "set", "resource", "memory_bytes", 10_000_000) == 0
    for words in (["--from", "plan.yaml"], ["--from", "plan.yaml", "--dry-run"]):
        capfd.readouterr()
        assert typed("task", "add", *words) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert "The training of shapes needs at least" in said.err
    with space.sessions.read() as session:
        assert (tasks.list_all(session), queue.list_all(session)) == ([], [])
    assert typed("queue", "limit", "rm", "resource", "memory_bytes") == 0
    capfd.readouterr()
    assert typed("task", "add", "--from", "plan.yaml", "--json") == 0
    made = json.loads(capfd.readouterr().out)
    assert [job["memory_bytes"] for job in made] == [None, None]
    assert typed("job", "list", "--json") == 0
    listed = capfd.readouterr().out
    assert len(listed) < 700 * len(made)
    assert all("recipe" not in job and "payload" not in job for job in json.loads(listed))
    assert typed("job", "show", "1", "--json") == 0
    whole = capfd.readouterr().out
    assert whole.count('"mask_ratio"') == 1
    assert json.loads(whole)["payload"]["recipe"]["batch"] == 4
    space.sessions.engine.dispose()

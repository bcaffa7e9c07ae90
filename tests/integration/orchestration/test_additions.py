"""The use cases between the registry and the rest: each is one transaction, and refused leaves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from affinery.backbones.files import save_backbone
from affinery.errors import BackboneFileInvalid, ConfigInvalid, UnknownName
from orchestration import additions, composing, queue, scheduling
from orchestration.errors import NeedNotMet, TaskIsBusy
from orchestration.jobs import JobRecord
from orchestration.services import Services
from registry import backbones, blobs, tasks
from registry.errors import NotFound, TaskExists
from tests import learning_world as world
from tests.tiny_unets import built, unet_spec


@pytest.fixture
def space(services: Services, tmp_path: Path) -> Services:
    """A workspace with a backbone and two datasets."""
    for seed, name in enumerate(("shapes", "shades")):
        world.add_dataset(services, world.image_folder(tmp_path / name, "x", "y", seed=seed), name)
    return services


def known(space: Services) -> list[str]:
    with space.sessions.read() as session:
        return [task.name for task in tasks.list_all(session)]


def jobs(space: Services) -> list[str]:
    with space.sessions.read() as session:
        return [job.id for job in queue.list_all(session)]


def keyed(space: Services, *names: str, key: str) -> str:
    return scheduling.schedule(
        space.sessions, names, names, backbone="tiny", kind="affiner", config={}, recipe={}, key=key
    ).id


def test_the_same_request_twice_registers_and_queues_once(space: Services) -> None:
    assert keyed(space, "shapes", key="once") == keyed(space, "shapes", key="once")
    assert known(space) == ["shapes"]
    assert len(jobs(space)) == 1


def test_a_task_name_used_twice_is_refused_and_nothing_changes(space: Services) -> None:
    world.schedule(space, "shapes")
    before = jobs(space)
    with pytest.raises(TaskExists):
        world.schedule(space, "shades", "shapes")
    assert (known(space), jobs(space)) == (["shapes"], before)


def test_a_refused_schedule_leaves_no_task(space: Services) -> None:
    ended = world.schedule(space, "shades")
    with space.sessions.begin() as session:
        queue.cancel(session, ended.id)
    for refused, given in (
        (NotFound, {"sources": ["nothing"]}),
        (NotFound, {"backbone": "nothing"}),
        (UnknownName, {"kind": "nothing"}),
        (ConfigInvalid, {"recipe": {"steps": 0}}),
        (ConfigInvalid, {"recipe": {"stepps": 1}}),
        (ConfigInvalid, {"sources": ["shapes", "shades"]}),
        (NeedNotMet, {"after": [ended.id]}),
    ):
        request: dict[str, object] = {
            "names": ["shapes"],
            "sources": ["shapes"],
            "backbone": "tiny",
            "kind": "affiner",
            "config": {},
            "recipe": {},
        }
        with pytest.raises(refused):
            scheduling.schedule(space.sessions, **(request | given))  # type: ignore[arg-type]
    assert known(space) == ["shades"]
    assert jobs(space) == [ended.id]


def test_a_task_that_waits_is_not_scheduled_again_but_one_that_was_cancelled_is(space: Services) -> None:
    job = world.schedule(space, "shapes")
    with pytest.raises(TaskIsBusy):
        scheduling.schedule_again(space.sessions, ["shapes"], world.RECIPE)
    with space.sessions.begin() as session:
        queue.cancel(session, job.id)
    assert scheduling.schedule_again(space.sessions, ["shapes"], world.RECIPE).state == "queued"


def test_a_backbone_file_that_is_none_is_refused_and_no_byte_is_stored(
    space: Services, tmp_path: Path, tiny_backbone: Path
) -> None:
    before = sorted(space.store.digests())
    whole = tiny_backbone.read_bytes()
    for content in (b"", b"no safetensors", whole[:-4], whole + b"x", whole[:200]):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(BackboneFileInvalid):
            additions.add_backbone(space.sessions, space.store, tmp_path / "file", "other")
    assert sorted(space.store.digests()) == before
    with space.sessions.read() as session:
        assert [record.ref for record in backbones.list_all(session)] == ["tiny@1"]
        assert blobs.live_uploads(session) == []


def test_the_same_backbone_twice_is_one_version(space: Services, tiny_backbone: Path) -> None:
    first, _ = additions.add_backbone(space.sessions, space.store, tiny_backbone, "tiny")
    assert first.ref == "tiny@1"


def test_a_composition_of_nothing_or_of_what_was_not_learnt_is_refused(space: Services) -> None:
    world.schedule(space, "shapes")
    with pytest.raises(ConfigInvalid, match="name one adapter or more"):
        composing.compose_tasks(space.sessions, "all", [])
    with pytest.raises(NotFound):
        composing.compose_tasks(space.sessions, "all", ["shapes"])


def asked(space: Services, *names: str, **given: Any) -> JobRecord:
    """Tasks scheduled on the tiny backbone, as the command line does it."""
    usual: dict[str, Any] = {"backbone": "tiny", "kind": "affiner", "config": {}, "recipe": {}}
    return scheduling.schedule(space.sessions, names, names, **(usual | given))


def configs(space: Services) -> dict[str, tuple[str, dict[str, Any]]]:
    with space.sessions.read() as session:
        return {task.name: (task.kind, task.config) for task in tasks.list_all(session)}


def test_tasks_of_different_kinds_train_together_each_with_the_settings_that_it_has(space: Services) -> None:
    job = asked(space, "shapes", "shades", kind=["lora", "difffit"], config={"rank": 3, "blocks": 1})
    assert job.tasks == ("shapes", "shades")
    found = configs(space)
    assert found["shapes"] == ("lora", {"targets": [], "rank": 3, "alpha": None})
    assert found["shades"] == ("difffit", {"blocks": 1, "first_block": 0})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"kind": "difffit", "config": {"rank": 3}}, "difffit: there is no setting 'rank'"),
        ({"kind": "lora", "config": {"rnk": 3}}, "Did you mean 'rank'"),
        ({"kind": "lora", "config": {"rank": 0}}, "rank: 0 is not"),
        ({"kind": "lora", "config": {"targets": ["down_blocks.*"]}}, "nothing to adapt"),
        ({"kind": ["lora", "bitfit"]}, "2 kinds were named for 1 tasks"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused_before_anything_is_scheduled(
    space: Services, given: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigInvalid, match=match):
        asked(space, "shapes", **given)
    assert (known(space), jobs(space)) == ([], [])


def test_a_backbone_without_tokens_trains_unmasked_and_its_affiners_have_rank_32(
    space: Services, tmp_path: Path
) -> None:
    save_backbone(built(unet_spec()), tmp_path / "cnn.safetensors")
    additions.add_backbone(space.sessions, space.store, tmp_path / "cnn.safetensors", "cnn")
    assert asked(space, "shapes", backbone="cnn").recipe["mask_ratio"] == 0
    assert configs(space)["shapes"][1]["rank"] == 32
    with pytest.raises(ConfigInvalid, match="mask_ratio: unet has no tokens"):
        asked(space, "shades", backbone="cnn", recipe={"mask_ratio": 0.5})
    assert asked(space, "shades").recipe["mask_ratio"] == 0.5
    assert configs(space)["shades"][1]["rank"] == 64


def test_a_plan_is_accepted_whole_and_the_second_time_only_what_is_new(space: Services) -> None:
    def wanted(*names: str, after: tuple[int, ...] = ()) -> scheduling.Wanted:
        return scheduling.Wanted(names, names, "tiny", after=after, key=f"plan:{'+'.join(names)}")

    first = wanted("shapes")
    with pytest.raises(NotFound):
        scheduling.schedule_all(space.sessions, [first, wanted("nothing")])
    assert (known(space), jobs(space)) == ([], [])
    seen: list[str] = []
    scheduling.schedule_all(
        space.sessions, [first], rehearse=lambda _, found: seen.extend(each.job.state for each in found)
    )
    assert (seen, known(space), jobs(space)) == (["queued"], [], [])
    (one,) = scheduling.schedule_all(space.sessions, [first])
    again, two = scheduling.schedule_all(space.sessions, [first, wanted("shades", after=(0,))])
    assert (one.new, again.new, two.new) == (True, False, True)
    assert again.job.id == one.job.id
    assert two.job.needs == (one.job.id,)
    assert jobs(space) == [one.job.id, two.job.id]


def planned(*names: str, **given: Any) -> scheduling.Wanted:
    key = f"plan:{'+'.join(names)}"
    return scheduling.Wanted(names, names, given.pop("backbone", "tiny"), key=key, adopt=True, **given)


def test_a_task_that_was_scheduled_by_hand_counts_as_there_for_a_plan(space: Services) -> None:
    by_hand = world.schedule(space, "shapes")
    there, new = scheduling.schedule_all(
        space.sessions, [planned("shapes"), planned("shades", after=(0,))], data=space.data
    )
    assert (there.job.id, there.new, new.new) == (by_hand.id, False, True)
    assert new.job.needs == (by_hand.id,)
    assert known(space) == ["shapes", "shades"]


def test_another_task_of_the_same_name_is_told_and_nothing_of_the_plan_is_kept(space: Services) -> None:
    world.schedule(space, "shapes")
    before = jobs(space)
    for wanted, why in (
        (planned("shapes", kinds=("lora",)), "of the kind affiner and not lora"),
        (planned("shapes", "shades"), "'shapes' beside it is there already"),
    ):
        with pytest.raises(ConfigInvalid, match=why):
            scheduling.schedule_all(space.sessions, [planned("shades"), wanted])
    assert (known(space), jobs(space)) == (["shapes"], before)


def test_a_recipe_that_changed_under_a_known_key_is_told_and_changes_nothing(space: Services) -> None:
    first = scheduling.schedule_all(space.sessions, [planned("shapes", recipe={"steps": 5})])[0].job
    notes: list[str] = []
    (again,) = scheduling.schedule_all(
        space.sessions, [planned("shapes", recipe={"steps": 9})], on_note=notes.append
    )
    assert (again.job.id, again.job.recipe["steps"], again.new) == (first.id, 5, False)
    assert len(notes) == 1
    assert "stays as it is: steps 5 and not 9" in notes[0]
    scheduling.schedule_all(space.sessions, [planned("shapes", recipe={"steps": 5})], on_note=notes.append)
    assert len(notes) == 1

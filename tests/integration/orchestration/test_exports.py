"""Compositions with sums are recorded, shipped and drawn; what may not be shipped is refused."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import affinery
from affinery.errors import ConfigInvalid, UnknownName
from affinery.merge_recipe import Weight
from affinery.serving.engine import Ask, Engine
from orchestration import composing, exports, scheduling
from orchestration.composing import Sum
from orchestration.errors import ExportRefused
from orchestration.exports import Asked
from orchestration.services import Services
from registry import certificates, renaming, retirement
from registry import exports as recorded
from registry.errors import RecordInvalid
from registry.records import CompositionRecord
from tests import learning_world as world
from tests.learnt_space import learn

pytestmark = pytest.mark.timeout(300)
INK = Sum({"shapes": Weight(0.6), "shades": Weight(0.4, (("qkv", 0.1),))}, "ink")


@pytest.fixture(scope="module")
def learnt(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Path:
    """Three tasks learnt: two Affiners and a LoRA."""
    folder = tmp_path_factory.mktemp("learnt") / "space"
    services = world.make_space(folder, sqlite_template, mlflow_template, tiny_backbone)
    for seed, name in enumerate(("shapes", "shades", "low")):
        world.add_dataset(services, world.image_folder(folder.parent / name, "x", "y", seed=seed), name)
    world.schedule(services, "shapes", "shades", steps=2)
    learn(services, folder.parent / "one")
    scheduling.schedule(
        services.sessions,
        ["low"],
        ["low"],
        backbone="tiny",
        kind="lora",
        config={"rank": 2},
        recipe=world.RECIPE | {"steps": 2},
        data=services.data,
    )
    learn(services, folder.parent / "two")
    services.sessions.engine.dispose()
    return folder


@pytest.fixture
def space(tmp_path: Path, learnt: Path) -> Iterator[Services]:
    shutil.copytree(learnt, tmp_path / "space")
    services = world.open_space(tmp_path / "space")
    yield services
    services.sessions.engine.dispose()


def compose(space: Services, *members: str, sums: tuple[Sum, ...] = ()) -> CompositionRecord:
    return composing.compose_tasks(space.sessions, "all", members, sums)


def ship(space: Services, **asked: Any) -> exports.Written:
    _, written = exports.export(space.sessions, space.store, Asked("all", **asked), space.exports)
    return written


def nothing_shipped(space: Services) -> None:
    with space.sessions.read() as session:
        assert recorded.list_all(session) == []
    assert not space.exports.exists() or list(space.exports.iterdir()) == []


def test_a_sum_is_recorded_with_its_members_and_its_recipe_and_drawn_from_the_bundle(space: Services) -> None:
    record = compose(space, "low", sums=(INK,))
    assert (record.mode, record.members) == ("merged", ("low@1", "shapes@1", "shades@1"))
    assert record.recipe == {
        "merges": [
            {
                "name": "ink",
                "of": [
                    {"member": 1, "weight": 0.6},
                    {"member": 2, "weight": 0.4, "layers": [["qkv", 0.1]]},
                ],
            }
        ]
    }
    assert compose(space, "low", sums=(INK,)).ref == "all@1"
    assert compose(space, "low", sums=(Sum({"shapes": Weight(0.5), "shades": Weight(0.5)}),)).ref == "all@2"
    with space.sessions.begin() as session:
        renaming.rename(session, "task:shapes", "forms")
    bundle = exports.export(space.sessions, space.store, Asked("all@1"), space.exports)[1].path
    model = affinery.load(bundle)
    assert list(model.slots) == ["low", "forms", "shades", "ink"]
    assert "`ink` is the weighted sum 0.6 · forms + 0.4 · shades" in (bundle / "README.md").read_text()
    model.merge("by hand", {"forms": Weight(0.6), "shades": Weight(0.4, (("qkv", 0.1),))})
    drawn = [affinery.draw(model, name, "shades/y", steps=3) for name in ("ink", "by hand")]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("members", "one", "says"),
    [
        ((), Sum({"shapes": Weight(1.0), "low": Weight(1.0)}), "several kinds: affiner, lora"),
        ((), Sum({"shapes": Weight(1.0), "shapes@1": Weight(1.0)}), "names one task twice"),
        (("low",), Sum({"shapes": Weight(1.0)}, "low"), "'low' is the name of a member's task"),
    ],
)
def test_sums_that_cannot_be_are_refused_and_nothing_is_recorded(
    members: tuple[str, ...], one: Sum, says: str, space: Services
) -> None:
    with pytest.raises((ConfigInvalid, RecordInvalid), match=says):
        compose(space, *members, sums=(one,))
    assert compose(space, "low").ref == "all@1"


def test_a_member_that_was_retired_since_is_not_shipped(space: Services) -> None:
    compose(space, "shapes", "low")
    with space.sessions.begin() as session:
        retirement.retire(session, "low@1", "blurred")
    with pytest.raises(ExportRefused, match=r"all@1 is not exported: low@1 is retired \(blurred\)"):
        ship(space)
    nothing_shipped(space)
    with space.sessions.begin() as session:
        retirement.restore(session, "low@1")
    assert ship(space).path.is_dir()


def test_a_member_of_which_nothing_was_proved_is_shipped_only_where_that_is_said(space: Services) -> None:
    compose(space, "shapes", "low")
    with space.sessions.begin() as session:
        certificates.record(session, stage_adapter="adapter:low@1", results={}, level="unverified")
    with pytest.raises(ExportRefused, match=r"nothing was proved of low@1.*--unverified"):
        ship(space)
    nothing_shipped(space)
    assert ship(space, unverified=True).path.is_dir()


def test_a_format_is_compared_recorded_and_never_half_there(space: Services) -> None:
    compose(space, "shapes", "low")
    for asked, error in (
        ({"format": "safetensors", "task": "shapes"}, ConfigInvalid),
        ({"format": "safetensors", "task": "numbers"}, UnknownName),
        ({"format": "keras"}, UnknownName),
    ):
        with pytest.raises(error):
            ship(space, **asked)
    nothing_shipped(space)
    written = ship(space, format="safetensors", task="low")
    assert written.difference is not None
    assert written.difference < 1e-4
    assert written.path.name == "all-1.safetensors.low"
    with space.sessions.read() as session:
        (record,) = recorded.list_all(session)
    assert (record.format, record.digest, record.path) == ("safetensors", written.digest, str(written.path))
    again = ship(space, format="safetensors", task="low")
    assert (again.path, again.digest) == (written.path, written.digest)
    (written.path / "more.txt").write_text("by hand")
    for _ in range(2):
        assert ship(space, format="safetensors", task="low").path.name == "all-1.safetensors.low.2"
    chosen = space.exports / "chosen"
    chosen.mkdir()
    with pytest.raises(ConfigInvalid, match="something is there already"):
        ship(space, format="safetensors", task="low", out=chosen)


def test_a_bundle_is_shipped_again_after_a_task_was_renamed_and_the_older_one_stays(space: Services) -> None:
    compose(space, "shapes", "low")
    before = ship(space).path
    assert ship(space, format="mlflow").path == ship(space, format="mlflow").path
    with space.sessions.begin() as session:
        renaming.rename(session, "task:shapes", "forms")
    for _ in range(2):
        assert ship(space).path.name == "all-1.2"
        assert ship(space, format="mlflow").path.name == "all-1.mlflow.2"
    assert list(affinery.load(before).slots) == ["shapes", "low"]
    assert list(affinery.load(space.exports / "all-1.2").slots) == ["forms", "low"]
    with pytest.raises(ConfigInvalid, match="something else is there already"):
        ship(space, out=before)


def test_every_way_to_ship_a_composition_has_a_place_of_its_own(space: Services) -> None:
    compose(space, "shapes", "low")
    ways: list[dict[str, Any]] = [
        {},
        {"backbone": False},
        {"format": "safetensors", "task": "low"},
    ]
    first = [ship(space, **way) for way in ways]
    assert [each.path.name for each in first] == ["all-1", "all-1.no-backbone", "all-1.safetensors.low"]
    assert not (first[1].path / "backbone.safetensors").exists()
    assert [ship(space, **way).path for way in ways] == [each.path for each in first]
    with space.sessions.read() as session:
        assert len(recorded.list_all(session)) == len(ways)


def test_a_model_card_tells_of_recognition_as_far_as_it_is_known(space: Services, tmp_path: Path) -> None:
    for place, (told, said) in enumerate(
        (
            ({"share": 0.75, "samples": 4}, "| 75.0% of 4 |"),
            (0.75, "| 75.0% of its samples |"),
            ("high", "| – |"),
            ({"by_class": [1.0, 0.5]}, "| – |"),
        )
    ):
        scheduling.schedule_again(space.sessions, ["low"], {"steps": 1}, None)
        learn(space, tmp_path / f"again {place}", {"recognition": told})
        compose(space, "low")
        written = ship(space, unverified=True)
        assert said in (written.path / "README.md").read_text(encoding="utf-8")


def test_an_mlflow_model_is_registered_with_its_lineage_and_loaded_from_there(space: Services) -> None:
    import mlflow.pyfunc

    compose(space, "shapes", "shades")
    written = ship(space, format="mlflow")
    assert written.difference == 0
    for _ in range(2):  # told twice, it is there once
        exports.tell(space.tracking, space.sessions, written)
    assert space.tracking.flush()
    client = space.tracking.client()
    (version,) = client.search_model_versions("name='model.all'")
    assert version.tags["affinery.ref"] == "all@1"
    assert "shades@1" in json.loads(version.tags["affinery.members"])
    found = mlflow.pyfunc.load_model(version.source)
    (row,) = found.predict([{"task": "shades", "label": "y", "steps": 2}])
    assert base64.b64decode(row["image"]).startswith(b"\x89PNG")


def test_a_bundle_without_its_backbone_takes_it_from_elsewhere(space: Services, tiny_backbone: Path) -> None:
    compose(space, "shapes")
    written = ship(space, backbone=False)
    assert not (written.path / "backbone.safetensors").exists()
    assert affinery.draw(affinery.load(written.path, tiny_backbone), "shapes", "x", steps=2).shape[0] == 1


def test_a_server_takes_in_what_was_published_since_and_leaves_out_what_may_not_be_shipped(
    space: Services,
) -> None:
    from affinery_app.serving.following import take_in
    from affinery_app.settings import Settings
    from affinery_app.wiring import Workspace

    compose(space, "shapes")
    folder = space.exports.parent
    workspace = Workspace(folder, Settings(store_url=space.store_url))
    engine = Engine(affinery.load(ship(space).path))
    try:
        with space.sessions.begin() as session:
            retirement.retire(session, "low@1", "blurred")
        assert take_in(workspace, engine) == ["shades@1"]
        assert take_in(workspace, engine) == []
        assert engine.versions.find("shades@1").slot == "shades"
        asked = Ask("shades", (engine.model.task("shades").row("y"),), (3,), world_settings())
        assert engine.submit(asked).images.result(60).shape == (1, 1, 16, 16)
    finally:
        engine.stop()


def world_settings() -> Any:
    from affinery.diffusion.sampling import SamplerSettings

    return SamplerSettings(2, 2.0)

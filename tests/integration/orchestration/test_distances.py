"""The distance over steps: a picture in the runs of a task's versions."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from orchestration import distances, scheduling
from orchestration.services import Services
from registry import adapters
from tests import learning_world as world


def test_a_version_s_run_shows_the_distances_of_all_versions_over_their_steps(
    services: Services, tmp_path: Path
) -> None:
    world.add_dataset(services, world.image_folder(tmp_path / "marks", "x", "y"), "marks")
    job = world.schedule(services, "marks", steps=2)
    world.train_here(services, job.id)
    assert world.worker_here(services, world.Heard()).drain() == 1
    assert shown(services) == []  # of one version there is nothing to compare
    again = scheduling.schedule_again(services.sessions, ["marks"], job.recipe | {"steps": 3}, ["marks@1"])
    world.train_here(services, again.id)
    assert world.worker_here(services, world.Heard()).drain() == 1
    [picture] = shown(services)
    with Image.open(picture) as image:
        assert image.width > 300
    with services.sessions.read() as session:
        versions = adapters.list_all(session, task="marks")
        found = distances.measured(session, versions)
        made = [(each, distances.run_of(session, each)) for each in versions]
    [lines] = distances.over_steps(made, found).values()
    assert [steps for steps, _ in lines["FD[recogniser]"]] == [2, 5]
    assert picture.parent.name == next(iter(found))[:12]


def shown(services: Services) -> list[Path]:
    """The pictures that MLflow has of it."""
    services.tracking.flush_all()
    return list(services.tracking.artifacts.rglob(distances.PICTURE))

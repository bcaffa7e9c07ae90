"""The worker end to end: real Ray, real MLflow, real DVC, a real registry; only the training is short."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from affinery.adapters.files import read_adapter
from orchestration import queue
from orchestration.environment import code_version, environment_fingerprint
from orchestration.errors import NeedNotMet
from orchestration.jobs import JobRecord
from orchestration.queue import history
from orchestration.services import Services
from orchestration.worker import Worker
from registry import adapters, backbones, blobs, certificates, lineage, tasks
from registry import datasets as recorded
from registry.records import AdapterRecord
from tests import learning_world as world
from trainers.errors import DatasetChanged

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
SETS = {"shapes": ("x", "y"), "shades": ("light", "dark", "grün"), "plain": (), "spoilt": ("x",)}


@dataclass
class Learnt:
    """A workspace in which a pair was trained together, a third alone, and one could not be."""

    services: Services
    heard: world.Heard
    jobs: dict[str, JobRecord]

    def adapter(self, ref: str) -> AdapterRecord:
        with self.services.sessions.read() as session:
            return adapters.get(session, ref)

    def mlflow(self, query: str, *given: Any) -> list[Any]:
        with sqlite3.connect(self.services.data.parent / "mlflow.db") as store:
            return store.execute(query, given).fetchall()


@pytest.fixture(scope="module")
def learnt(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Learnt]:
    folder = tmp_path_factory.mktemp("worker")
    made = world.make_space(folder / "a space", sqlite_template, mlflow_template, tiny_backbone)
    services = replace(made, ray_address=request.getfixturevalue("local_ray"))
    for seed, (name, classes) in enumerate(SETS.items()):
        world.add_dataset(services, world.image_folder(folder / name, *classes, seed=seed), name)
    pair = world.schedule(services, "shapes", "shades")
    spoilt = world.schedule(services, "spoilt")
    third = world.schedule(services, "plain", after=(pair.id,))
    with services.sessions.read() as session:
        source = recorded.get(session, "spoilt")
    manifest = services.data / source.dvc_path / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"CC0-1.0", b"CC1-1.0"))
    heard = world.Heard()
    assert Worker(services, heard).drain() == 2
    jobs = {"pair": pair, "third": third, "spoilt": spoilt}
    yield Learnt(services, heard, {name: world.job(services, job.id) for name, job in jobs.items()})
    services.sessions.engine.dispose()


def test_every_task_that_can_be_learnt_is_learnt_once(learnt: Learnt) -> None:
    assert learnt.heard.published_refs == ["shapes@1", "shades@1", "plain@1"]
    assert [learnt.jobs[name].state for name in ("pair", "third", "spoilt")] == ["done", "done", "dead"]
    with learnt.services.sessions.read() as session:
        assert [tasks.get(session, name).state for name in SETS] == ["learnt", "learnt", "learnt", "failed"]


def test_a_dataset_that_was_changed_fails_its_job_for_good_with_the_reason_while_the_others_are_done(
    learnt: Learnt,
) -> None:
    ((job, error, state),) = learnt.heard.failures
    assert (job.tasks, state, job.attempts) == (("spoilt",), "dead", 1)
    assert isinstance(error, DatasetChanged)
    assert "manifest.json was edited" in str(error)
    assert (learnt.jobs["spoilt"].error, learnt.jobs["spoilt"].why) == (error.elsewhere(), str(error))


def test_a_second_drain_finds_nothing_to_do(learnt: Learnt) -> None:
    before = learnt.mlflow("SELECT count(*) FROM metrics")
    assert world.worker_here(learnt.services, world.Heard()).drain() == 0
    assert learnt.mlflow("SELECT count(*) FROM metrics") == before


def test_progress_is_told_for_every_stretch_of_steps(learnt: Learnt) -> None:
    assert learnt.heard.steps == [*range(1, 9), *range(1, 9)]


def test_how_long_a_step_took_is_kept_to_foresee_by(learnt: Learnt) -> None:
    with learnt.services.sessions.read() as session:
        backbone = backbones.get(session, "tiny").node_id
        found = history.pace(session, backbone)
    assert found is not None
    assert 0 < found.step_seconds < 60
    assert found.beside_seconds > 0
    assert learnt.heard.resumed == [0, 0]


def test_an_adapter_carries_what_is_needed_to_train_it_again(learnt: Learnt) -> None:
    record = learnt.adapter("shades")
    made = record.provenance
    with learnt.services.sessions.read() as session:
        dataset, task = recorded.get(session, "shades"), tasks.get(session, "shades")
    assert made["dataset"] == dataset.digest
    assert made["job"] == learnt.jobs["pair"].id == record.job_id
    assert made["trained_with"] == ["shapes"]
    assert made["strategy"] == "co-trained"
    assert made["recipe"] == learnt.jobs["pair"].recipe
    assert made["seed"] == made["recipe"]["seed"]
    assert made["environment"] == environment_fingerprint()["digest"]
    assert made["code_version"] == code_version()
    assert record.block == task.block
    held = read_adapter(learnt.services.store.path(record.blob_digest))
    assert held.parameters == record.parameters
    assert held.meta.class_names == task.classes == ("dark", "grün", "light")


def test_the_lineage_of_an_adapter_names_its_backbone_its_dataset_version_and_its_run(learnt: Learnt) -> None:
    with learnt.services.sessions.read() as session:
        node = lineage.resolve(session, "adapter:plain")
        graph = lineage.ancestors(session, node.node_id)
    kinds = {(found.kind, found.ref) for found in graph.nodes.values()}
    run = learnt.adapter("plain").mlflow_run_id
    assert {("backbone", "tiny@1"), ("dataset", "plain@1"), ("task", "plain"), ("run", run)} <= kinds


def test_mlflow_has_one_run_a_task_with_its_parameters_and_the_whole_curve(learnt: Learnt) -> None:
    for name in ("shapes", "shades", "plain"):
        run = learnt.adapter(name).mlflow_run_id
        ((status, experiment),) = learnt.mlflow(
            "SELECT status, experiments.name FROM runs JOIN experiments USING (experiment_id)"
            " WHERE run_uuid = ?",
            run,
        )
        assert (status, experiment) == ("FINISHED", "affinery")
        steps = learnt.mlflow(
            "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'loss' ORDER BY step", run
        )
        assert steps == [(step,) for step in range(1, 9)]
        params = dict(learnt.mlflow("SELECT key, value FROM params WHERE run_uuid = ?", run))
        assert params["steps"] == "8"
        assert params["affiner.rank"] == "2"
        assert (params["dataset"], params["backbone"]) == (f"{name}@1", "tiny@1")
        tags = dict(learnt.mlflow("SELECT key, value FROM tags WHERE run_uuid = ?", run))
        assert tags["affinery.adapter"] == f"{name}@1"
    assert len(learnt.mlflow("SELECT * FROM runs")) == 4


def test_tasks_that_were_trained_together_have_their_runs_under_that_of_the_job(learnt: Learnt) -> None:
    parents = dict(learnt.mlflow("SELECT run_uuid, value FROM tags WHERE key = 'mlflow.parentRunId'"))
    shapes, shades = (learnt.adapter(name).mlflow_run_id for name in ("shapes", "shades"))
    assert parents.keys() == {shapes, shades}
    (parent,) = set(parents.values())
    assert learnt.mlflow("SELECT name, status FROM runs WHERE run_uuid = ?", parent) == [
        ("shapes + shades", "FINISHED")
    ]


def test_mlflow_knows_the_dataset_by_its_digest_and_the_adapter_as_a_registered_model(learnt: Learnt) -> None:
    for name in ("shapes", "shades", "plain"):
        record = learnt.adapter(name)
        digests = learnt.mlflow(
            "SELECT d.digest, d.dataset_source_type FROM inputs i"
            " JOIN datasets d ON d.dataset_uuid = i.source_id WHERE i.destination_id = ?",
            record.mlflow_run_id,
        )
        assert digests == [(record.provenance["dataset"][:36], "dvc")]
        tags = dict(learnt.mlflow("SELECT key, value FROM model_version_tags WHERE name = ?", f"task.{name}"))
        assert (tags["affinery.ref"], tags["affinery.digest"]) == (record.ref, record.digest)
        ((run, source),) = learnt.mlflow(
            "SELECT run_id, source FROM model_versions WHERE name = ?", f"task.{name}"
        )
        assert run == record.mlflow_run_id
        assert list(Path(unquote(source.removeprefix("file://"))).glob("*.safetensors"))


def test_mlflow_has_the_pictures_and_the_adapter_itself(learnt: Learnt) -> None:
    for name in ("shapes", "shades", "plain"):
        folder = learnt.services.data.parent / "artifacts" / str(learnt.adapter(name).mlflow_run_id)
        kept = {path.name for path in folder.rglob("*") if path.is_file()}
        assert {"samples.png", "loss.png", "contact-sheet.png", "environment.json", "plan.json"} <= kept
        assert any(file.endswith(".safetensors") for file in kept)


def test_what_was_learnt_first_is_proved_unchanged_when_the_third_is_added(learnt: Learnt) -> None:
    first, last = learnt.heard.certificates
    assert first.level == last.level == "bit-exact"
    assert first.results["adapters"] == []
    assert {entry["ref"] for entry in last.results["adapters"]} == {"shapes@1", "shades@1"}
    assert {entry["level"] for entry in last.results["replay"]} == {"bit-exact"}
    with learnt.services.sessions.read() as session:
        (kept,) = certificates.list_for(session, "plain")
    assert kept.results == last.results


def test_no_upload_is_left_open(learnt: Learnt) -> None:
    with learnt.services.sessions.read() as session:
        assert blobs.live_uploads(session) == []


def test_an_adapter_trained_beside_another_equals_the_one_trained_alone(learnt: Learnt) -> None:
    services = learnt.services
    with services.sessions.begin() as session:
        job = queue.enqueue(session, ["shades"], learnt.jobs["pair"].recipe)
    world.train_here(services, job.id)
    heard = world.Heard()
    assert world.worker_here(services, heard).drain() == 1
    assert heard.published_refs == ["shades@2"]
    assert learnt.adapter("shades@2").provenance["strategy"] == "sequential"
    together, alone = (
        read_adapter(services.store.path(learnt.adapter(ref).blob_digest)).tensors
        for ref in ("shades@1", "shades@2")
    )
    assert together.keys() == alone.keys()
    moved = 0
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-6, msg=name)
        moved += int(tensor.abs().sum() > 0)
    assert moved > len(together) / 2


def test_a_job_whose_need_failed_is_told_and_not_waited_for(learnt: Learnt) -> None:
    services = learnt.services
    with services.sessions.begin() as session:
        first = queue.enqueue(session, ["spoilt"], learnt.jobs["pair"].recipe)
        queue.enqueue(session, ["shapes"], learnt.jobs["pair"].recipe, after=[first.id])
    heard = world.Heard()
    assert world.worker_here(services, heard).drain() == 0
    assert [(job.tasks, state) for job, _, state in heard.failures] == [
        (("spoilt",), "dead"),
        (("shapes",), "dead"),
    ]
    assert isinstance(heard.failures[1][1], NeedNotMet)
    assert "manifest.json was edited" in str(heard.failures[1][1])


def test_what_the_worker_in_ray_refuses_arrives_as_itself_without_a_second_try(
    services: Services, tmp_path: Path, local_ray: str
) -> None:
    services = replace(services, ray_address=local_ray)
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    world.schedule(services, "shapes")
    with services.sessions.read() as session:
        source = recorded.get(session, "shapes")

    class Spoiling(world.Heard):
        """Changes the data after the worker checked it and before Ray's own process reads it."""

        def started(self, job: JobRecord, resumed_from: int) -> None:
            manifest = services.data / source.dvc_path / "manifest.json"
            manifest.chmod(0o644)
            manifest.write_bytes(manifest.read_bytes().replace(b"CC0-1.0", b"CC1-1.0"))

    heard = Spoiling()
    assert Worker(services, heard).drain() == 0
    ((job, error, state),) = heard.failures
    assert isinstance(error, DatasetChanged), error
    assert (state, job.attempts) == ("dead", 1)
    assert services.tracking.pending() == 0
    with sqlite3.connect(services.data.parent / "mlflow.db") as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]

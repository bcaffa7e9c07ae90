"""Whatever is not what it was when an older task was learnt is found before anything new is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from affinery.adapters.files import read_adapter
from affinery.bundle import load_bundle
from affinery.composed import ComposedModel
from affinery.errors import AffineryError
from orchestration import composing, exports, publishing, queue, scheduling
from orchestration.certificates import prove
from orchestration.environment import environment_fingerprint
from orchestration.errors import OlderTaskDisturbed, StageMoved
from orchestration.jobs import JobRecord
from orchestration.queue import holding
from orchestration.services import Services
from registry import adapters, backbones, blobs, renaming, tasks
from registry.errors import BlobDamaged, BlobMissing
from registry.verification import verify
from tests import learning_world as world
from trainers.conditions import condition_record
from trainers.replay import replay

DIGEST = str(environment_fingerprint()["digest"])


@pytest.fixture(scope="session")
def learnt_space(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Path:
    """A workspace with one task learnt, told edges, and another trained to its end but not published yet."""
    folder = tmp_path_factory.mktemp("learnt") / "space"
    services = world.make_space(folder, sqlite_template, mlflow_template, tiny_backbone)
    for seed, name in enumerate(("old", "new")):
        world.add_dataset(services, world.image_folder(folder.parent / name, "x", "y", seed=seed), name)
    world.train_here(services, world.schedule(services, "old", condition=condition_record("canny")).id)
    assert world.worker_here(services, world.Heard()).drain() == 1
    world.train_here(services, world.schedule(services, "new").id)
    services.sessions.engine.dispose()
    return folder


@pytest.fixture
def space(tmp_path: Path, learnt_space: Path) -> Iterator[Services]:
    shutil.copytree(learnt_space, tmp_path / "space")
    services = world.open_space(tmp_path / "space")
    yield services
    services.sessions.engine.dispose()


def flip(path: Path, at: int = -3) -> None:
    """Changes one bit of a file, near its end unless told otherwise."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@dataclass
class Stored:
    """Where the bytes of the older task and its backbone lie."""

    adapter: Path
    golden: Path
    backbone: Path


def stored(space: Services) -> Stored:
    with space.sessions.read() as session:
        record = adapters.get(session, "old")
        backbone = backbones.get(session, "tiny")
    assert record.golden_blob is not None
    return Stored(
        *(space.store.path(d) for d in (record.blob_digest, record.golden_blob, backbone.blob_digest))
    )


def composed(space: Services) -> tuple[ComposedModel, publishing.Stage]:
    """The model that the new task's results join."""
    with space.sessions.read() as session:
        learner = tasks.get(session, "new")
    stage = publishing.stage_of(space, [learner])
    found = [
        read_adapter(path) for path in space.runs.glob("*/attempt-1/ray/checkpoint/adapter-0.safetensors")
    ]
    fresh = [adapter for adapter in found if adapter.meta.task == "new"]
    return publishing.compose(space, stage, fresh), stage


def test_a_training_that_was_finished_is_published_without_training_or_ray(space: Services) -> None:
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 1
    assert heard.published_refs == ["new@1"]
    assert heard.steps == []
    assert heard.resumed == [8]
    (certificate,) = heard.certificates
    assert certificate.level == "bit-exact"
    assert [entry["ref"] for entry in certificate.results["replay"]] == ["old@1"]


def test_an_older_task_under_a_new_name_is_proved_composed_and_shipped_under_it(
    space: Services, tmp_path: Path
) -> None:
    with space.sessions.begin() as session:
        renaming.rename(session, "task:old", "lines")
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 1
    (certificate,) = heard.certificates
    assert certificate.level == "bit-exact"
    assert [entry["ref"] for entry in certificate.results["adapters"]] == ["lines@1"]
    assert [entry["task"] for entry in certificate.results["replay"]] == ["lines"]
    with space.sessions.begin() as session:
        renaming.rename(session, "task:new", "old-fashioned")
    record = composing.compose_tasks(space.sessions, "both", ["lines", "old-fashioned"])
    exports.write_composition(space.sessions, space.store, record, tmp_path / "bundle")
    model = load_bundle(tmp_path / "bundle")
    assert list(model.slots) == ["lines", "old-fashioned"]
    golden = tmp_path / "bundle" / "golden" / "0.safetensors"
    assert replay(model, golden, DIGEST, "lines").level == "bit-exact"
    assert verify(space.sessions.engine, space.store).sound


def test_a_finished_checkpoint_with_a_torn_adapter_is_not_taken_for_one(space: Services) -> None:
    from orchestration.kinds.train import plan_of
    from orchestration.ray_train import finished_checkpoint

    job = next(job for job in _jobs(space) if job.tasks == ("new",))
    _, plan = plan_of(space, job)
    folder = space.runs / job.id
    found = finished_checkpoint(folder, plan)
    assert found is not None
    adapter = found / "adapter-0.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-10])
    assert finished_checkpoint(folder, plan) is None


def _jobs(space: Services) -> list[JobRecord]:
    with space.sessions.read() as session:
        return queue.list_all(session)


@pytest.mark.parametrize(
    ("which", "error", "said"),
    [
        ("adapter", OlderTaskDisturbed, "old@1 is not what it was"),
        ("golden", OlderTaskDisturbed, "golden images has been changed"),
        ("backbone", BlobDamaged, "Restore it from a backup"),
    ],
)
def test_one_flipped_bit_in_what_is_stored_of_older_things_stops_the_publication_for_good(
    space: Services, which: str, error: type[AffineryError], said: str
) -> None:
    flip(getattr(stored(space), which))
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 0
    ((job, found, state),) = heard.failures
    assert (job.tasks, state, job.attempts) == (("new",), "dead", 1)
    assert isinstance(found, error)
    assert said in str(found)
    with space.sessions.read() as session:
        assert [record.ref for record in adapters.list_all(session)] == ["old@1"]
        assert tasks.get(session, "new").state == "failed"
        assert blobs.live_uploads(session) == []


def test_a_blob_that_is_gone_is_told_and_not_tried_again(space: Services) -> None:
    stored(space).adapter.unlink()
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 0
    ((_, error, state),) = heard.failures
    assert isinstance(error, BlobMissing)
    assert state == "dead"


def test_after_the_blob_is_restored_the_task_is_published_from_its_checkpoint(space: Services) -> None:
    path = stored(space).adapter
    whole = path.read_bytes()
    flip(path)
    assert world.worker_here(space, world.Heard()).drain() == 0
    path.write_bytes(whole)
    recipe = _jobs(space)[-1].recipe
    again = scheduling.schedule_again(space.sessions, ["new"], recipe)
    world.train_here(space, again.id)
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 1
    assert heard.published_refs == ["new@1"]


def _backbone_weight(model: ComposedModel) -> None:
    next(iter(model.frozen_state().values())).view(-1)[0] += 1e-3


def _null_row(model: ComposedModel) -> None:
    model.backbone.class_table.data[model.null_row, 0] += 1e-6


def _older_row(model: ComposedModel) -> None:
    model.task("old").rows.data[0, 0] += 1e-6


def _older_tensor(model: ComposedModel) -> None:
    task = model.task("old")
    bank = next(iter(model.banks(model.groups[task.group]).values()))
    next(iter(bank.tensors(task.slot).values())).data.view(-1)[0] += 1e-6


def _older_stem(model: ComposedModel) -> None:
    stem = model.task("old").stem
    assert stem is not None
    stem.gate.data.add_(1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_backbone_weight, "tiny@1 is not what it was"),
        (_null_row, "is not what it was"),
        (_older_row, "old@1 is not what it was"),
        (_older_tensor, "old@1 is not what it was"),
        (_older_stem, "old@1 is not what it was"),
    ],
)
def test_a_number_changed_in_the_composed_model_is_found(
    space: Services, change: Callable[[ComposedModel], None], said: str
) -> None:
    model, stage = composed(space)
    assert prove(model, stage.backbone, stage.older, space.store, DIGEST).level == "bit-exact"
    with torch.no_grad():
        change(model)
    with pytest.raises(OlderTaskDisturbed, match=said):
        prove(model, stage.backbone, stage.older, space.store, DIGEST)


def test_in_another_environment_the_certificate_says_tolerance_where_bits_differ(space: Services) -> None:
    model, stage = composed(space)
    elsewhere = prove(model, stage.backbone, stage.older, space.store, "another environment")
    assert elsewhere.level in ("bit-exact", "tolerance")
    assert not elsewhere.results["replay"][0]["same_environment"]


def test_a_task_that_was_published_meanwhile_is_in_the_proof(
    space: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the proof and the publication another worker publishes; the job is tried again with it."""
    real = prove

    def and_then_another_publishes(*given: object) -> object:
        certificate = real(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(publishing, "prove", real)
        job = world.schedule(space, "old2")
        world.train_here(space, job.id)
        assert world.worker_here(space, world.Heard(), "another").run_next() is not None
        return certificate

    world.add_dataset(space, world.image_folder(space.data.parent / "more", "x", seed=9), "old2")
    monkeypatch.setattr(publishing, "prove", and_then_another_publishes)
    monkeypatch.setattr(holding, "RETRY_SECONDS", 0)
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 1
    ((_, error, state),) = heard.failures
    assert isinstance(error, StageMoved)
    assert state == "queued"
    (certificate,) = heard.certificates
    assert {entry["ref"] for entry in certificate.results["adapters"]} == {"old@1", "old2@1"}


def test_a_worker_that_lost_its_job_while_it_proved_publishes_nothing(
    space: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prove

    def and_meanwhile_it_is_taken_from_it(*given: object) -> object:
        with space.sessions.begin() as session:
            queue.owners_gone(session, ["tests"])
        with space.sessions.begin() as session:
            queue.give_up(session)
            assert queue.claim(session, "another") is not None
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "prove", and_meanwhile_it_is_taken_from_it)
    heard = world.Heard()
    assert world.worker_here(space, heard).drain() == 0
    ((_, _, state),) = heard.failures
    assert state == "lost"
    with space.sessions.read() as session:
        assert [record.ref for record in adapters.list_all(session)] == ["old@1"]
        assert blobs.live_uploads(session) == []

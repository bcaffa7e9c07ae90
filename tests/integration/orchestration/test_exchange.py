"""A published LoRA leaves for PEFT, and comes back the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from affinery.adapters.files import Adapter, read_adapter
from affinery.backbones.files import load_backbone
from affinery.errors import ConfigInvalid
from affinery.interchange import read_lora
from affinery_app import wiring
from affinery_app.cli import adapter as commands
from orchestration import scheduling
from orchestration.exchange import export_lora
from orchestration.services import Services
from registry import adapters
from registry.errors import NotFound
from tests import learning_world as world


@pytest.fixture(scope="module")
def learnt_loras(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Iterator[Services]:
    """A workspace with a task of the kind lora and one of the kind affiner."""
    folder = tmp_path_factory.mktemp("loras") / "space"
    services = world.make_space(folder, sqlite_template, mlflow_template, tiny_backbone)
    for name, kind in (("styles", "lora"), ("others", "affiner")):
        world.add_dataset(services, world.image_folder(folder.parent / name, "x", "y"), name)
        job = scheduling.schedule(
            services.sessions,
            [name],
            [name],
            backbone="tiny",
            kind=kind,
            config={"rank": 2},
            recipe=world.RECIPE,
        )
        world.train_here(services, job.id)
        assert world.worker_here(services, world.Heard()).drain() == 1
    yield services
    services.sessions.engine.dispose()


def published(services: Services, name: str) -> tuple[Adapter, Path, str]:
    """A task's adapter, its backbone's file and that one's fingerprint."""
    from registry import backbones

    with services.sessions.read() as session:
        record = adapters.get(session, name)
        backbone = backbones.by_id(session, record.backbone_id)
    adapter = read_adapter(services.store.path(record.blob_digest))
    return adapter, services.store.path(backbone.blob_digest), backbone.digest


def test_an_exported_lora_read_again_is_the_published_one_to_the_bit(
    learnt_loras: Services, tmp_path: Path
) -> None:
    record = export_lora(learnt_loras.sessions, learnt_loras.store, "styles@1", "peft", tmp_path)
    adapter, backbone, fingerprint = published(learnt_loras, "styles")
    meta = adapter.meta
    again = read_lora(
        tmp_path,
        load_backbone(backbone),
        fingerprint,
        task=meta.task,
        block=meta.block,
        class_names=meta.class_names,
    )
    assert record.ref == "styles@1"
    assert again.meta == meta
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in adapter.tensors.items())


def test_what_has_no_such_file_is_refused_and_nothing_is_written(
    learnt_loras: Services, tmp_path: Path
) -> None:
    space, out = learnt_loras, tmp_path / "out"
    for ref, file_format in (("others", "peft"), ("styles", "diffusers"), ("styles", "onnx")):
        with pytest.raises(ConfigInvalid):
            export_lora(space.sessions, space.store, ref, file_format, out)
    with pytest.raises(NotFound):
        export_lora(space.sessions, space.store, "nothing", "peft", out)
    assert not out.exists()


def test_the_command_says_what_it_wrote(
    learnt_loras: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "open_workspace", lambda _: learnt_loras)
    given = ["export", "styles", "--format", "peft", "--out", str(tmp_path)]
    result = CliRunner().invoke(commands.app, [*given, "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["adapter"] == "styles@1"
    assert told["files"] == {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    plain = CliRunner().invoke(commands.app, given)
    assert "adapter_model.safetensors" in plain.stdout
    assert "class rows" in plain.stderr

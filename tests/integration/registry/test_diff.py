"""What differs between adapter versions and between compositions, and how far their tensors are apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from typer.testing import CliRunner

from affinery_app.cli.commands import command_line
from orchestration.differences import differences
from orchestration.tensor_differences import tensor_differences
from registry import adapters, compositions, errors, refs
from registry.diff import diff
from registry.session import Sessions
from registry.storage.local import LocalStore
from tests import registry_world as world


@pytest.fixture
def told(ledger: Sessions, tmp_path: Path) -> Sessions:
    """Two versions of digits with files, and two compositions that differ in a version and in a member."""
    store = LocalStore(tmp_path / "blobs")
    files = [
        save(
            {"a": np.full((2, 2), 3.0, "float32"), "b": np.ones(4, "float16"), "gone": np.ones(1, "float32")}
        ),
        save(
            {"a": np.full((2, 2), 3.5, "float32"), "b": np.ones(4, "float16"), "new": np.ones(9, "float32")}
        ),
    ]
    with ledger.begin() as session:
        world.backbone(session)
        for number, content in enumerate(files, 1):
            world.learnt(
                session,
                "digits",
                number,
                blob_digest=store.put_bytes(content),
                size_bytes=len(content),
                config={"rank": 4 * number, "targets": {"qkv": True}},
                metrics={"recognition": {"share": 0.4 * number}},
                provenance={"seed": 7, "strategy": "sequential" if number == 1 else "co-trained"},
            )
        world.learnt(session, "faces")
        for members in (["digits@1"], ["digits@2", "faces"]):
            compositions.register(
                session, name="all", backbone="dit", mode="routed", recipe={}, members=members
            )
    return ledger


def paths(found: dict[str, Any], section: str) -> dict[str, tuple[Any, Any]]:
    return {each["path"]: (each.get("left"), each.get("right")) for each in found[section]}


def test_two_versions_differ_in_config_metrics_and_provenance_and_not_in_data(told: Sessions) -> None:
    with told.read() as session:
        found = diff(session, "adapter:digits@1", "digits@2").to_json()
        assert (found["kind"], found["left"], found["right"]) == ("adapter", "digits@1", "digits@2")
        assert paths(found, "config") == {"rank": (4, 8)}
        assert found["data"] == []
        assert paths(found, "metrics") == {"recognition.share": (0.4, 0.8)}
        provenance = paths(found, "provenance")
        assert provenance["strategy"] == ("sequential", "co-trained")
        assert provenance["run.mlflow_run_id"] == ("mlflow-job-digits-1-digits", "mlflow-job-digits-2-digits")
        assert "seed" not in provenance


def test_adapters_of_two_tasks_differ_in_their_data(told: Sessions) -> None:
    with told.read() as session:
        found = diff(session, "adapter:digits", "adapter:faces").to_json()
        assert paths(found, "data")["dataset"] == ("digits@1", "faces@1")
        assert {"rank", "targets.qkv", "d"} <= paths(found, "config").keys()
        absent = next(each for each in found["config"] if each["path"] == "rank")
        assert "right" not in absent


def test_compositions_differ_in_their_members(told: Sessions) -> None:
    with told.read() as session:
        found = diff(session, "all@1", "all@2").to_json()
        assert paths(found, "members") == {"digits": ("digits@1", "digits@2"), "faces": (None, "faces@1")}
        assert paths(found, "metrics")["digits.recognition.share"] == (0.4, 0.8)
        assert found["config"] == []


def test_a_thing_does_not_differ_from_itself(told: Sessions) -> None:
    with told.read() as session:
        for ref in ("adapter:digits@1", "all"):
            assert not any(diff(session, ref, ref).sections.values())


def test_only_adapters_and_compositions_of_one_kind_can_be_compared(told: Sessions) -> None:
    with told.read() as session:
        with pytest.raises(errors.RefInvalid, match="speaks of a composition"):
            diff(session, "adapter:digits", "composition:all")
        with pytest.raises(errors.RefInvalid, match="adapters and compositions"):
            diff(session, "dataset:digits", "dataset:faces")
        with pytest.raises(errors.NotFound):
            diff(session, "adapter:digits", "digits@9")
        assert refs.resolve(session, "all").version == 2


def test_tensors_are_compared_by_name_with_their_norms(told: Sessions, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    one, other = (store.path(each) for each in sorted(store.digests()))
    found = {each.name: each for each in tensor_differences(one, other)}
    assert found["a"].apart == pytest.approx(1.0)
    assert {found["a"].left, found["a"].right} == {6.0, 7.0}
    assert found["b"].apart == 0.0
    assert found["b"].left == 2.0
    assert {found["gone"].left, found["gone"].right} == {None, 1.0}
    assert found["new"].apart is None
    assert all(each.apart == 0.0 for each in tensor_differences(one, one))


def test_tensors_of_half_precision_and_of_other_shapes_are_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    values = torch.tensor([1.0, -2.0, 3.0, 0.5])
    save_file({"x": values.bfloat16(), "y": values, "z": values > 0}, str(tmp_path / "a"))
    save_file({"x": values, "y": values.reshape(2, 2).clone(), "z": values > 0}, str(tmp_path / "b"))
    x, y, z = tensor_differences(tmp_path / "a", tmp_path / "b")
    assert x.apart == 0.0
    assert x.left == pytest.approx(float(values.norm()))
    assert (y.left_shape, y.right_shape, y.apart) == ((4,), (2, 2), None)
    assert (z.left, z.right, z.apart) == (None, None, None)


def test_numbers_without_a_finite_norm_have_none(tmp_path: Path) -> None:
    for name, value in (("a", np.inf), ("b", 1.0)):
        (tmp_path / name).write_bytes(save({"x": np.full(3, value), "y": np.full(3, value * 1e200)}))
    x, y = tensor_differences(tmp_path / "a", tmp_path / "b")
    assert (x.left, x.apart) == (None, None)
    assert x.right == pytest.approx(3**0.5)
    assert (y.left, y.right, y.apart) == (None, None, None)


def test_which_blob_is_damaged_is_said(told: Sessions, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    found = differences(told, store, "adapter:digits@1", "digits@2")
    assert [each["name"] for each in found["tensors"]] == ["a", "b", "gone", "new"]
    with told.read() as session:
        digest = adapters.get(session, "digits@2").blob_digest
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.BlobDamaged) as caught:
        differences(told, store, "adapter:digits@1", "digits@2")
    assert caught.value.args[0] == digest
    assert differences(told, store, "adapter:digits@1", "digits@2", tensors=False)["tensors"] is None


def test_diff_from_the_command_line(told: Sessions, tmp_path: Path, registry_url: str) -> None:
    (tmp_path / "affinery.toml").write_text(f'registry_url = "{registry_url}"\n')

    def run(*words: str) -> str:
        done = CliRunner().invoke(
            command_line(), ["diff", *words, "-w", str(tmp_path)], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    shown = run("adapter:digits@1", "digits@2")
    assert "tensors: 1 equal, 3 differ" in shown
    assert "recognition.share" in shown
    found = json.loads(run("adapter:digits@1", "digits@2", "--json"))
    assert [each["name"] for each in found["tensors"]] == ["a", "b", "gone", "new"]
    assert json.loads(run("all@1", "all@2", "--json"))["tensors"] is None
    assert json.loads(run("adapter:digits@1", "digits@2", "--json", "--no-tensors"))["tensors"] is None

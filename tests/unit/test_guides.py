"""The guides hold what they say: their code runs, and their figures are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import affinery.adapters
from affinery.adapters import kind, kinds
from affinery.adapters.contract import Kind
from affinery.adapters.files import adapter_bytes, read_adapter
from affinery.estimate import Estimator, spec_for
from tests import tiny_models as tiny

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "guides"


def code_of(guide: str, path: str) -> str:
    """The file that a guide shows, whole."""
    text = (GUIDES / guide).read_text()
    found = re.findall(rf"^```python\n# {re.escape(path)}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def ssf(tmp_path: Path) -> Iterator[Path]:
    """The guide's kind, as if its file lay in the folder of kinds. → the folder that it lies in"""
    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "ssf.py").write_text(code_of("add-an-adapter-kind.md", "affinery/adapters/ssf.py"))
    affinery.adapters.__path__.append(str(folder))
    yield folder
    affinery.adapters.__path__.remove(str(folder))
    sys.modules.pop("affinery.adapters.ssf", None)


@pytest.mark.usefixtures("ssf")
def test_the_kind_of_the_guide_is_found_by_its_file_alone(tmp_path: Path) -> None:
    assert "ssf" in kinds()
    assert kind("ssf").config({}).to_dict() == {"targets": []}
    outputs = 483_840  # of the layers that an Affiner is on, which has one b for each
    counts = Estimator(spec_for("dit-xl-2")).count("ssf", {})
    assert counts == {"gamma": outputs, "beta": outputs, "class_rows": 1152}


@pytest.mark.usefixtures("ssf")
def test_the_kind_of_the_guide_starts_as_the_backbone_mixes_with_others_and_is_kept(tmp_path: Path) -> None:
    record = tiny.meta("ours", (4, 6), kind="ssf", config={})
    model = tiny.composed(tiny.adapter(tiny.meta("theirs", (6, 8))))
    model.start(record, torch.Generator().manual_seed(0))
    x, t = tiny.inputs(3)
    rows, null = torch.tensor([4, 3, 6]), torch.tensor([3, 3, 3])
    assert torch.equal(model(x, t, rows, ["ours"] * 3)[0], model(x, t, null, [None] * 3)[0])
    trained = tiny.adapter(record)
    model.unload("ours")
    model.load(trained)
    mixed = model(x, t, rows, ["ours", None, "theirs"])
    for i, task in enumerate(["ours", None, "theirs"]):
        alone = model(x[i : i + 1], t[i : i + 1], rows[i : i + 1], [task])
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed[0], model(x, t, null, [None] * 3)[0])
    (tmp_path / "ours.safetensors").write_bytes(adapter_bytes(model.adapter("ours")))
    read = read_adapter(tmp_path / "ours.safetensors")
    assert all(torch.equal(tensor, trained.tensors[name]) for name, tensor in read.tensors.items())


def test_the_code_of_the_guide_is_as_the_linter_wants_it(ssf: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", "affinery/adapters/ssf.py", "-"],
            input=(ssf / "ssf.py").read_text(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_contract_tests_run_over_the_kind_of_the_guide_and_pass(ssf: Path, tmp_path: Path) -> None:
    (tmp_path / "with_ssf.py").write_text(
        f"import affinery.adapters\naffinery.adapters.__path__.append({str(ssf)!r})\n"
    )
    command = [
        "-q",
        "-p",
        "with_ssf",
        "-p",
        "no:cacheprovider",
        "--durations=0",
        "-k",
        "ssf",
        "tests/contract",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 200


def table_of_kinds() -> dict[str, list[str]]:
    """The rows of the table, by kind."""
    rows = re.findall(
        r"^\| \[`([\w-]+)`\]\((\S+)\) \|(.*)\|$", (GUIDES / "adapter-kinds.md").read_text(), re.M
    )
    return {name: [link, *(cell.strip() for cell in cells.split(" | "))] for name, link, cells in rows}


def test_the_table_has_every_kind_and_no_other() -> None:
    assert sorted(table_of_kinds()) == kinds()
    for name, (link, *_) in table_of_kinds().items():
        assert link == f"../../affinery/adapters/{name.replace('-', '_')}.py"


def test_the_tables_defaults_and_parameters_are_those_of_the_code() -> None:
    estimator = Estimator(spec_for("dit-xl-2"))
    for name, (_, _, _, settings, parameters, folds, merges) in table_of_kinds().items():
        method = kind(name)
        config = method.config({}).to_dict()
        assert set(re.findall(r"`(\w+)`", settings)) == config.keys()
        for setting, shown in re.findall(r"`(\w+)` ([^,`]+(?:,[^,` ]+)*)", settings):
            value = config[setting]
            text = ",".join(value) if isinstance(value, list) else str(value).lower()
            assert shown == text or (setting, shown) == ("alpha", "rank")
        counts = estimator.count(name, {})
        assert parameters == f"{sum(counts.values()) - counts['class_rows']:,}"
        assert (folds != "no") == (type(method).fold is not Kind.fold)
        assert (merges != "no") == (type(method).merged_config is not Kind.merged_config)

"""The papers' tables: their data are packs with licences, cells are computed once, the page is true."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from affinery.backbones import architecture
from benchmarks.papers import __main__ as command
from benchmarks.papers import data
from benchmarks.papers.backbones import spec_of
from benchmarks.papers.cells import Cell
from benchmarks.papers.page import Facts, page
from benchmarks.papers.tables import PROFILES, Row, Table, tables
from registry.metrics import numbers
from trainers.packs import read_manifest, verify_pack


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (shade, 0, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An emoji package: 20 animals, 20 flags of which one has no picture here, 20 digits on keys."""
    path = tmp_path / "packages" / f"emoji-datasource-twitter-{data.VERSION}.tgz"
    path.parent.mkdir()
    listed = [
        {
            "image": f"{category}-{i}.png",
            "category": category,
            "subcategory": under,
            "has_img_twitter": not (category == "Flags" and i == 0),
        }
        for category, under in (("Animals", "bird"), ("Flags", "country"), ("Keys", "keycap"))
        for i in range(20)
    ]
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        add("emoji.json", json.dumps(listed).encode())
        for i, each in enumerate(listed):
            add(f"img/twitter/64/{each['image']}", picture(i))
            add(f"img/twitter/16/{each['image']}", picture(200))
    return tmp_path


def test_an_emoji_package_becomes_a_pack_with_its_licence_without_signs_and_small_classes(
    package: Path,
) -> None:
    folder = data.prepare(package, ["twemoji"])["twemoji"]
    manifest = verify_pack(folder, read_manifest(folder).digest)
    assert (manifest.classes, manifest.class_counts) == (("Animals",), (20,))
    assert manifest.licence.startswith("CC BY 4.0")
    assert {image.width for image in manifest.images} == {64}


def test_what_was_prepared_stays_and_what_ships_is_packed_alike_everywhere(tmp_path: Path) -> None:
    one, other = (data.prepare(tmp_path / name, ["letters"])["letters"] for name in ("a", "b"))
    written = (one / "manifest.json").stat().st_mtime_ns
    data.prepare(tmp_path / "a", ["letters"])
    assert (one / "manifest.json").stat().st_mtime_ns == written
    assert read_manifest(one).digest == read_manifest(other).digest
    assert read_manifest(one).licence == "free font licences"


def test_every_table_of_every_profile_names_kinds_and_settings_that_exist() -> None:
    from affinery.adapters import kind
    from trainers.recipe import Recipe

    for profile in PROFILES.values():
        for table in tables(profile):
            for row in table.rows:
                for cells in row.cells.values():
                    assert len(cells) == profile.seeds
                    for cell in cells:
                        kind(cell.kind).config(cell.config)
                        Recipe.from_dict(cell.recipe)


def test_the_transformer_and_the_cnn_have_as_many_parameters() -> None:
    counts = []
    for arch in ("dit", "unet"):
        with torch.device("meta"):
            network = architecture(arch).build(spec_of(arch, 32, 3, tuple(map(str, range(78))), 192))
        counts.append(sum(parameter.numel() for parameter in network.parameters()))
    assert counts == [2_872_368, 2_750_739]


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["papers", "--out", str(out), "--quick", *words])
    command.main()
    return (out / "results.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_was_broken_off_computes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = run(monkeypatch, tmp_path, "--only", "masks", "forgetting")
    assert "figures mean nothing" in text
    assert "| 75% masked |" in text
    assert "digits → letters" in text
    assert "![samples](results-pictures/masks-digits.png)" in text
    with Image.open(tmp_path / "results-pictures" / "masks-digits.png") as opened:
        assert opened.height > 4 * 48  # a line of samples and a title a method
    cells = sorted((tmp_path / "quick" / "cells").glob("*.json"))
    assert len(cells) == 4 + 1
    written = {path: path.stat().st_mtime_ns for path in cells}
    lost = next(path for path in cells if "cell" in json.loads(path.read_text()))
    before = json.loads(lost.read_text())
    lost.unlink()
    assert run(monkeypatch, tmp_path, "--only", "masks", "forgetting").count("masked |") == 4
    after = json.loads(lost.read_text())
    assert numbers(after["results"]) == pytest.approx(numbers(before["results"]), rel=1e-3)
    assert all(path.stat().st_mtime_ns == at for path, at in written.items() if path != lost)


def test_a_table_that_does_not_exist_is_refused_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="Known: methods, baselines"):
        run(monkeypatch, tmp_path, "--only", "table-9")
    assert not (tmp_path / "packs").exists()


def cell(fd: float, seconds: float, digest: str = "a" * 64) -> dict[str, Any]:
    results = {"FD[recogniser]": fd, "KD[recogniser]": {"mean": fd / 10, "low": 0, "high": 1}}
    return {"parameters": 1000, "seconds": seconds, "results": results, "protocol_digest": digest}


def test_the_page_tells_the_mean_and_its_ends_the_time_beside_full_fine_tuning_and_the_protocol() -> None:
    rows = [Row(name, {"digits": [Cell("dit", "digits", "full")]}) for name in ("full fine-tuning", "LoRA")]
    table = Table("methods", "Methods", "Table 1", rows)
    found = {
        ("methods", "full fine-tuning", "digits"): [cell(1.0, 10), cell(3.0, 10)],
        ("methods", "LoRA", "digits"): [cell(4.0, 5)],
    }
    facts = Facts("command", "small", "a machine", "how", {"dit": "small"}, {"digits": "CC BY 4.0"})
    forgetting = [{"order": ["a", "b"], "kind": "full", "matrix": [[1.0], [3.5, 2.0]]}]
    text = page(facts, [table], found, forgetting)
    assert "| full fine-tuning | 1,000 | 2 (1 to 3) | 0.2 (0.1 to 0.3) | 1.00 × |" in text
    assert "| LoRA | 1,000 | 4 | 0.4 | 0.50 × |" in text
    assert "Protocol `aaaaaaaaaaaa`." in text
    assert "| forgotten (first − last) | +2.5 | +0 |" in text
    assert "`command --only methods`" in text

"""The papers' tables: their data are packs with licences, cells are computed once, the page is true."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from affinery.backbones import architecture
from benchmarks.papers import __main__ as command
from benchmarks.papers import data
from benchmarks.papers.backbones import spec_of
from benchmarks.papers.cells import Bench, Cell, Sampling
from benchmarks.papers.curves import as_it_stands
from benchmarks.papers.data import joined, write_pack
from benchmarks.papers.figures import figures
from benchmarks.papers.page import Facts, page
from benchmarks.papers.preparing import shipped_backbone
from benchmarks.papers.profiles import PROFILES
from benchmarks.papers.sequences import Bounds, part_of
from benchmarks.papers.tables import FULL, LORA, OURS, Row, Table, tables
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
                    assert len(cells) in (profile.seeds, profile.beside, profile.later_seeds)
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
@pytest.mark.timeout(1500)
def test_a_run_that_was_broken_off_computes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_to = tmp_path / "figures.json"
    text = run(monkeypatch, tmp_path, "--only", "masks", "forgetting", "--json", str(written_to))
    assert "masks: 75% masked on digits: FD[recogniser]" in json.loads(written_to.read_text())["figures"]
    assert "figures mean nothing" in text
    assert "| 75% masked |" in text
    assert "digits → letters" in text
    assert "![samples](results-pictures/masks-digits.png)" in text
    with Image.open(tmp_path / "results-pictures" / "masks-digits.png") as opened:
        assert opened.height > 4 * 48  # a line of samples and a title a method
    cells = sorted((tmp_path / "quick" / "cells").glob("*.json"))
    assert len(cells) == 4 + 3  # the sequence, all tasks at once, and the adapter that no mask's row is
    assert "| one model, all tasks at once |" in text
    written = {path: path.stat().st_mtime_ns for path in cells}
    lost = next(path for path in cells if "cell" in json.loads(path.read_text()))
    before = json.loads(lost.read_text())
    lost.unlink()
    assert run(monkeypatch, tmp_path, "--only", "masks", "forgetting").count("masked |") == 4
    after = json.loads(lost.read_text())
    assert numbers(after["results"]) == pytest.approx(numbers(before["results"]), rel=1e-3)
    assert all(path.stat().st_mtime_ns == at for path, at in written.items() if path != lost)


@pytest.mark.slow
def test_a_training_that_diverged_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = replace(
        PROFILES["quick"], rates={"lora": 9e5, "": 1e-3}, datasets=("digits",), shipped=True, steps=12
    )
    monkeypatch.setitem(PROFILES, "quick", wild)
    text = run(monkeypatch, tmp_path, "--only", "methods", "--row", LORA, "DiffFit")
    assert "| DiffFit |" in text
    assert f"| {LORA} |" not in text
    assert f"- methods: {LORA} on digits, seed 0: " in text


def test_weights_at_another_place_are_the_same_cell_and_others_at_the_same_place_are_not(
    tmp_path: Path,
) -> None:
    pack = write_pack(tmp_path / "pack", [("a", "1", picture(1)), ("b", "2", picture(2))], "CC0", "here")
    assert pack.classes == ("a", "b")
    cell = Cell("dit", "shades", "affiner")

    def key(place: str, digest: str) -> str:
        sampling = Sampling(4, 2, extractor=f"inception={place}")
        return Bench(
            tmp_path, {"dit": shipped_backbone()}, {"shades": tmp_path / "pack"}, sampling, digest
        ).key(cell)

    assert key("/a", "1234") == key("/b", "1234")
    assert key("/a", "1234") != key("/a", "5678")


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
    rows = [Row(name, {"digits": [Cell("dit", "digits", "full")]}) for name in (FULL, LORA, OURS)]
    table = Table("methods", "Methods", "Table 1", rows)
    found = {
        ("methods", FULL, "digits"): [cell(1.0, 10), cell(3.0, 10)],
        ("methods", LORA, "digits"): [cell(4.0, 5)],
        ("methods", OURS, "digits"): [cell(2.2, 5)],
    }
    facts = Facts("command", "small", "a machine", "how", {"dit": "small"}, {"digits": "CC BY 4.0"})
    sequences = [{"order": ["a", "b"], "kind": "full", "seed": 0, "matrix": [[1.0], [3.5, 2.0]]}]
    bounds = Bounds(sequences, [{"a": 1.5, "b": 1.7}], [{"a": 1.0, "b": 2.0}])
    text = page(facts, [table], found, bounds)
    assert "| full fine-tuning | 1,000 | 2 (1 to 3) | 0.2 (0.1 to 0.3) | 1.00 × | 2 |" in text
    assert "| LoRA r = 8 | 1,000 | 4 | 0.4 | 0.50 × | 1 |" in text
    assert "full fine-tuning 2, DiffScaler (transformer) 2.2, LoRA r = 8 4 | 1.10 |" in text
    assert "× 1.05 on 0 of 1 datasets, and better than LoRA and DiffFit on 1 of 1." in text
    assert "Protocol `aaaaaaaaaaaa`." in text
    assert "| forgotten (last − first) | +2.5 | +0 |" in text
    assert "| one model, task after task | 2.75 | 2.5 |" in text
    assert "| one model, all tasks at once | 1.6 | – |" in text
    assert "| an adapter a task | 1.5 | 0 |" in text
    assert "`command --only methods`" in text
    named = {figure.name: figure for figure in figures([table], found, bounds)}
    aimed = named["methods: DiffScaler / full fine-tuning on digits"]
    assert aimed.ours.median == pytest.approx(1.1)
    assert (aimed.limit, aimed.met) == (1.05, False)
    assert named["methods: DiffScaler / LoRA r = 8 on digits"].met
    distance = named["methods: full fine-tuning on digits: FD[recogniser]"]
    assert (distance.ours.low, distance.ours.high, distance.met) == (1, 3, None)
    assert named["forgetting: one model, task after task"].ours.median == 2.75


def test_what_was_not_computed_is_left_out_of_a_page_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = run(monkeypatch, tmp_path, "--kept", "--only", "methods", "forgetting", "steps")
    assert "## " not in text
    assert {path.name for path in tmp_path.iterdir()} == {"results.md"}


def bench(folder: Path, *names: str) -> Bench:
    packs = {name: noise_pack(folder / "packs" / name, number) for number, name in enumerate(names)}
    return Bench(folder, {"dit": shipped_backbone()}, packs, Sampling(4, 2))


def noise_pack(out: Path, seed: int) -> Path:
    """Two classes of three images each."""
    generator = torch.Generator().manual_seed(seed)
    shades = torch.randint(0, 256, (6,), generator=generator).tolist()
    write_pack(out, [(f"class {i % 2}", f"{i}.png", picture(shades[i])) for i in range(6)], "CC0", "a test")
    return out


def test_datasets_join_into_one_whose_classes_keep_their_names_and_their_order(tmp_path: Path) -> None:
    packs = {name: noise_pack(tmp_path / name, number) for number, name in enumerate(("b", "a"))}
    whole = joined(packs, tmp_path / "out")
    manifest = verify_pack(whole, read_manifest(whole).digest)
    assert manifest.classes == ("a/class 0", "a/class 1", "b/class 0", "b/class 1")
    assert manifest.class_counts == (3, 3, 3, 3)
    own = {image.sha256 for name in packs for image in read_manifest(packs[name]).images}
    assert {image.sha256 for image in manifest.images} == own
    assert joined(packs, tmp_path / "out") == whole


def test_the_part_of_a_joint_training_that_is_one_dataset_has_its_class_rows_and_all_layers(
    tmp_path: Path,
) -> None:
    place = bench(tmp_path, "a", "b", "a and b")
    whole_pack = joined({name: place.packs[name] for name in ("a", "b")}, tmp_path / "joined")
    place.packs["a and b"] = whole_pack
    recipe = {"steps": 1, "batch": 2, "precision": "fp32", "seed": 0}
    like = Cell("dit", "a and b", "bitfit", {}, recipe)
    whole, _, _ = place.train(like, tmp_path / "adapter")
    part = part_of(whole, place, Cell("dit", "b", "bitfit", {}, recipe))
    assert torch.equal(part.tensors["class_rows"], whole.tensors["class_rows"][2:4])
    assert part.meta.class_names == ("class 0", "class 1")
    assert part.tensors.keys() == whole.tensors.keys()
    place.model(like).load(part)  # an adapter like any other


def test_looking_at_a_training_on_its_way_changes_nothing_of_where_it_ends(tmp_path: Path) -> None:
    place = bench(tmp_path, "a")
    recipe = {"steps": 4, "batch": 2, "precision": "fp32", "seed": 0}
    one = Cell("dit", "a", "bitfit", {}, recipe)
    looked_at, left_alone = (place.session(one, reports=4) for _ in range(2))
    seen = []
    while not looked_at.done:
        seen.append(as_it_stands(looked_at, "a").tensors["class_rows"])
        looked_at.advance()
    while not left_alone.done:
        left_alone.advance()
    ends = [session.training.finish()[0].tensors for session in (looked_at, left_alone)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    assert not torch.equal(seen[1], seen[-1])

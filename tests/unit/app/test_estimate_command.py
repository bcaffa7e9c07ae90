"""`affinery estimate` and the options of kinds, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from affinery.adapters import kind, kinds
from affinery.backbones.files import save_backbone
from affinery_app.cli.kind_options import kind_values, parsed, sorted_out
from tests import tiny_models as tiny
from tests.command_line import typed
from tests.tiny_unets import built, unet_spec
from trainers.recipe import Recipe

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("estimate") / "tiny.safetensors"
    save_backbone(tiny.backbone(), path)
    return path


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("estimate") / "cnn.safetensors"
    save_backbone(built(unet_spec()), path)
    return path


def answer(capsys: Captured, *arguments: object) -> Any:
    capsys.readouterr()
    assert typed(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_without_a_kind_all_are_compared_the_cheapest_first(backbone: Path, capsys: Captured) -> None:
    shown = answer(capsys, "estimate", "--arch", backbone, "--classes", 2)
    found = [one["kind"] for one in shown["kinds"]]
    assert sorted(found) == kinds()
    counts = [one["parameters"] for one in shown["kinds"]]
    assert counts == sorted(counts)
    assert (shown["batch"], shown["mask_ratio"]) == (Recipe().batch, Recipe().mask_ratio)
    assert all(one["share"] == one["parameters"] / shown["backbone_parameters"] for one in shown["kinds"])


def test_the_comparison_fits_80_columns(backbone: Path, capsys: Captured, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert typed("estimate", "--arch", backbone) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    for name in kinds():
        assert any(line.startswith(f"{name} ") for line in shown.splitlines())


def test_one_kind_is_shown_by_part_beside_full_fine_tuning(backbone: Path, capsys: Captured) -> None:
    asked = ("estimate", "--arch", backbone, "--kind", "affiner", "--rank", 2, "--parts", "a,low-rank")
    shown = answer(capsys, *asked, "--classes", 2)
    assert list(shown["by_part"]) == ["a", "s", "low-rank", "class_rows"]
    assert shown["config"] == {"targets": [], "rank": 2, "parts": ["a", "low-rank"]}
    assert shown["by_part"]["class_rows"] == 2 * 16
    assert shown["masked"]["macs"] < shown["step"]["macs"] < shown["full"]["step"]["macs"]
    assert typed(*asked) == 0
    text = capsys.readouterr().out
    assert "low-rank" in text
    assert "memory of training" in text


def test_a_backbone_without_tokens_is_not_masked_and_its_affiners_have_rank_32(
    cnn: Path, capsys: Captured
) -> None:
    shown = answer(capsys, "estimate", "--arch", cnn, "--kind", "affiner")
    assert (shown["mask_ratio"], shown["masked"], shown["config"]["rank"]) == (0, None, 32)
    compared = answer(capsys, "estimate", "--arch", cnn)
    assert compared["not_defined"].keys() >= {"adaptformer-parallel"}
    assert typed("estimate", "--arch", cnn) == 0
    assert "adaptformer-parallel is left out: it finds nothing to adapt" in capsys.readouterr().err


def test_a_setting_of_some_kinds_is_given_to_those_that_have_it(backbone: Path, capsys: Captured) -> None:
    shown = answer(capsys, "estimate", "--arch", backbone, "--rank", 3, "--set", "blocks=1")
    configs = {one["kind"]: one["config"] for one in shown["kinds"]}
    assert configs["affiner"]["rank"] == configs["lora"]["rank"] == 3
    assert configs["difffit"]["blocks"] == 1
    assert "rank" not in configs["bitfit"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "dit-xl2"], "Did you mean 'dit-xl-2'"),
        (["--arch", "no/such/file"], "there is no such file"),
        (["--arch", "TINY", "--kind", "afiner"], "Did you mean 'affiner'"),
        (["--arch", "TINY", "--kind", "affiner", "--rank", "0"], "rank: 0 is not a whole number"),
        (["--arch", "TINY", "--kind", "affiner", "--rank", "9999"], "rank: 9999 is not"),
        (["--arch", "TINY", "--kind", "affiner", "--parts", "c"], "is not a choice of a, b, low-rank"),
        (["--arch", "TINY", "--kind", "bitfit", "--rank", "2"], "there is no setting 'rank'"),
        (["--arch", "TINY", "--set", "rnk=2"], "Did you mean 'rank'"),
        (["--arch", "TINY", "--set", "rank"], "is not of the form NAME=VALUE"),
        (["--arch", "TINY", "--kind", "lora", "--targets", "down.*"], "nothing to adapt"),
        (["--arch", "TINY", "--classes", "0"], "classes: 0 is not"),
        (["--arch", "TINY", "--batch", "0"], "batch: 0 is not"),
        (["--arch", "TINY", "--mask-ratio", "1"], "mask_ratio"),
        (["--arch", "TINY", "--image-size", "9"], "image_size"),
        (["--arch", "CNN", "--kind", "affiner", "--mask-ratio", "0.5"], "no tokens to mask"),
        (["--arch", "CNN", "--kind", "adaptformer-parallel"], "nothing to adapt"),
    ],
)
def test_what_cannot_be_estimated_ends_with_one_line_and_code_2(
    arguments: list[str], message: str, backbone: Path, cnn: Path, capsys: Captured
) -> None:
    named = {"TINY": str(backbone), "CNN": str(cnn)}
    assert typed("estimate", *(named.get(word, word) for word in arguments)) == 2
    caught = capsys.readouterr()
    assert message in caught.err
    assert len(caught.err.strip().splitlines()) == 1
    assert caught.out == ""


def test_the_kinds_are_listed_with_what_they_are_and_their_settings(capsys: Captured) -> None:
    shown = {one["kind"]: one for one in answer(capsys, "adapter", "kinds")}
    assert sorted(shown) == kinds()
    assert shown["lora"]["settings"] == {"targets": [], "rank": 8, "alpha": None}
    assert shown["lora"]["about"].startswith("LoRA (Hu et al. 2021)")
    assert all(one["about"].endswith((".", ":")) for one in shown.values())
    assert typed("adapter", "kinds") == 0
    assert "parts=a,b,low-rank" in "".join(capsys.readouterr().out.split())


def test_options_are_read_as_settings_and_lists_may_have_commas() -> None:
    assert kind_values(None, None, None, None) == {}
    assert kind_values(4, 8.0, ["qkv, proj", "fc*"], "a,b") == {
        "rank": 4,
        "alpha": 8.0,
        "targets": ["qkv", "proj", "fc*"],
        "parts": ["a", "b"],
    }
    assert parsed(["rank=4", "gated=false", "name=text", 'targets=["qkv"]']) == {
        "rank": 4,
        "gated": False,
        "name": "text",
        "targets": ["qkv"],
    }


def test_a_setting_is_either_the_kinds_or_the_trainings() -> None:
    recipe = Recipe().to_dict()
    own, others = sorted_out(["vpt-deep", "lora"], {"gated": False, "rank": 2, "lr": 0.1}, recipe)
    assert own == {"gated": False, "rank": 2}
    assert others == {"lr": 0.1}
    for name in kinds():
        assert not kind(name).config({}).to_dict().keys() & recipe.keys()

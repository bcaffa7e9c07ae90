"""Who looks at images: named after their weights, taken from disk, refused where they are something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from affinery.errors import ConfigInvalid, UnknownName
from trainers.data import Images
from trainers.evaluation.extractors import (
    Clip,
    Extractor,
    Inception,
    Timm,
    extractor_of,
    features_of,
    figure_name,
    recogniser_of,
    turned,
)

DIGEST = "d" * 64
ELSEWHERE = ("timm:hf-hub:timm/resnet18.a1_in1k=x", "timm:local-dir:/m=x")
"""Where timm itself would look for models: on the network, in folders with a configuration of their own."""


def images(count: int = 12, classes: int = 3, size: int = 8, channels: int = 1) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, size, size), generator=generator).byte()
    return Images(pixels, torch.arange(count) % classes)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the right shapes, which are not those that FID is defined by."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, path)
        model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand weights, in the folder that transformers writes."""
    from tests.tiny_clip import save_clip

    return save_clip(tmp_path_factory.mktemp("clip"))


def test_a_recogniser_is_trained_once_and_kept(tmp_path: Path) -> None:
    first = extractor_of("recogniser", DIGEST, images(), 3, tmp_path)
    [kept] = (tmp_path / "recognisers").iterdir()
    written = kept.stat().st_mtime_ns
    again = extractor_of("recogniser", DIGEST, images(), 3, tmp_path)
    assert (kept.stat().st_mtime_ns, first.digest) == (written, again.digest)
    kept.write_bytes(b"torn")
    assert extractor_of("recogniser", DIGEST, images(), 3, tmp_path).digest == first.digest
    other = extractor_of("recogniser", DIGEST, images(), 3, tmp_path, seed=1)
    assert other.digest != first.digest


def test_where_there_is_one_class_a_recogniser_learns_how_images_are_turned() -> None:
    model = recogniser_of(DIGEST, images(classes=1), 1)
    assert model.head[1].out_features == 4
    one = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(4, 1, 1, 1)
    pictures, quarters = turned(one)
    assert quarters.tolist() == [0, 1, 2, 3]
    assert [picture.flatten().tolist() for picture in pictures] == [
        [0, 1, 2, 3],
        [1, 3, 0, 2],
        [3, 2, 1, 0],
        [2, 0, 3, 1],
    ]


def test_figures_are_named_after_who_looked() -> None:
    extractor = extractor_of("recogniser", DIGEST, images(), 3)
    assert figure_name("FD", extractor) == "FD[recogniser]"
    seen = extractor.see(torch.zeros(2, 1, 8, 8))
    assert (seen.features.shape, some(seen.logits).shape) == ((2, 64), (2, 3))


def some(logits: Tensor | None) -> Tensor:
    assert logits is not None
    return logits


def test_weights_that_are_not_those_of_fid_never_give_a_figure_of_that_name(
    inception: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = Inception(inception)
    assert not extractor.official
    assert figure_name("FD", extractor) == f"FD[inception-{extractor.digest[:8]}]"
    monkeypatch.setattr("trainers.evaluation.extractors.INCEPTION_SHA256", extractor.digest[:8])
    official = Inception(inception)
    assert [figure_name(name, official) for name in ("FD", "KD", "IS")] == ["FID", "KID", "IS"]
    seen = official.see(torch.rand(2, 1, 16, 16) * 2 - 1)  # grey, as photographs are not
    assert (seen.features.shape, some(seen.logits).shape) == ((2, 2048), (2, 1008))


def test_a_file_that_would_run_code_is_refused_before_it_does(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigInvalid, match="no weights of Inception"):
        Inception(tmp_path / "evil.pth")
    with pytest.raises(ConfigInvalid, match="no checkpoint of timm's resnet10t"):
        Timm("resnet10t", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_any_timm_model_with_a_checkpoint_looks_in_its_own_size(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    weights = timm.create_model("resnet10t", num_classes=1000).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    extractor = extractor_of(f"timm:resnet10t={tmp_path / 'weights.pth'}", DIGEST, images(), 3)
    assert extractor.name == "timm:resnet10t"
    seen = extractor.see(torch.zeros(2, 1, 8, 8))
    assert (seen.features.shape, some(seen.logits).shape) == ((2, extractor.width), (2, 1000))
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "training.pth")
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("training.pth", "weights.safetensors"):
        other = extractor_of(f"timm:resnet10t={tmp_path / name}", DIGEST, images(), 3)
        assert torch.equal(other.see(torch.zeros(2, 1, 8, 8)).features, seen.features)
    with pytest.raises(ConfigInvalid, match=r"no checkpoint of timm's resnet18"):
        extractor_of(f"timm:resnet18={tmp_path / 'weights.pth'}", DIGEST, images(), 3)
    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "head.pth")
    with pytest.raises(ConfigInvalid, match=r"size mismatch for fc\.weight.*\[7, 512\].*\[1000, 512\]"):
        extractor_of(f"timm:resnet10t={tmp_path / 'head.pth'}", DIGEST, images(), 3)


def test_clip_scores_are_the_cosines_of_images_and_words(clip: Path) -> None:
    from transformers import AutoProcessor, CLIPModel

    extractor = Clip(clip)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    texts = ["abc b", "c a d"]
    features = extractor.see(pixels).features
    assert features.shape == (2, extractor.width)
    model, processor = CLIPModel.from_pretrained(clip), AutoProcessor.from_pretrained(clip)
    pictures = [((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for x in pixels]
    told = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
    with torch.inference_mode():
        whole = model(**told)  # its logits are the cosines, scaled
    cosines = (whole.logits_per_image / model.logit_scale.detach().exp()).diagonal()
    assert extractor.score(features, texts) == pytest.approx(
        float(100 * cosines.clamp(min=0).mean()), rel=1e-3
    )


@pytest.mark.parametrize(
    "asked",
    [
        "fid",
        "timm=x",
        "timm:=x",
        "inception",
        "clip:b=x",
        "",
        "timm:hf-hub:timm/resnet18=x",
        "timm:local-dir:/m=x",
    ],
)
def test_an_extractor_that_is_none_is_refused_with_the_forms_there_are(asked: str) -> None:
    with pytest.raises(UnknownName, match=r"inception=WEIGHTS\.pth"):
        extractor_of(asked, DIGEST, images(), 3)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="is not there"):
        extractor_of(f"inception={tmp_path / 'absent.pth'}", DIGEST, images(), 3)
    with pytest.raises(ConfigInvalid, match="is no CLIP model"):
        extractor_of(f"clip={tmp_path}", DIGEST, images(), 3)


@pytest.mark.parametrize("kind", ["inception", "timm:resnet10t"])
def test_a_folder_where_a_file_is_asked_for_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigInvalid, match="is no file; name the one that holds the weights"):
        extractor_of(f"{kind}={tmp_path}", DIGEST, images(), 3)


def test_a_file_where_a_folder_is_asked_for_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    with pytest.raises(ConfigInvalid, match="is no folder; name the one that holds the model"):
        extractor_of(f"clip={tmp_path / 'model'}", DIGEST, images(), 3)


def test_a_model_that_timm_does_not_know_is_refused_with_the_nearest_it_knows(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"weights")
    with pytest.raises(ConfigInvalid, match=r"no model 'resnet10tt'\. Did you mean 'resnet10t'"):
        extractor_of(f"timm:resnet10tt={tmp_path / 'weights.pth'}", DIGEST, images(), 3)


def test_what_is_seen_of_real_images_is_kept_under_its_key(tmp_path: Path) -> None:
    extractor = extractor_of("recogniser", DIGEST, images(), 3)
    looked = []

    class Counting:
        name, digest, width = extractor.name, extractor.digest, extractor.width

        def see(self, pixels: Tensor) -> object:
            looked.append(len(pixels))
            return extractor.see(pixels)

    counting: Extractor = Counting()  # type: ignore[assignment]
    rows = torch.tensor([0, 5])
    first = features_of(counting, images(), rows, tmp_path, "one")
    assert torch.equal(features_of(counting, images(), rows, tmp_path, "one"), first)
    assert looked == [2]
    features_of(counting, images(), rows, tmp_path, "other")
    assert looked == [2, 2]
    torch.testing.assert_close(features_of(counting, images(), rows, None, "one"), first)

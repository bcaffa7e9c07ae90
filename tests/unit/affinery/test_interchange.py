"""LoRA in the files of PEFT and diffusers: read by those libraries themselves, both ways, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from affinery.adapters.files import Adapter
from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, Text, on_meta
from affinery.backbones.dit_diffusers import DiffusersDiT, to_diffusers
from affinery.backbones.patch_transformer import position_table
from affinery.composed import ComposedModel
from affinery.errors import AdapterFileInvalid, ConfigInvalid
from affinery.interchange import read_lora, write_diffusers, write_peft
from tests import tiny_models as tiny
from tests import tiny_unets as unets

peft = pytest.importorskip("peft")
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel  # noqa: E402
from diffusers.loaders import PeftAdapterMixin, StableDiffusionLoraLoaderMixin  # noqa: E402

EVERYWHERE = ("qkv", "query", "key", "value", "proj", "fc1", "fc2", "modulation", "conv", "linear", "time")
PEFT_FILE, DIFFUSERS_FILE = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
CONFIG = "adapter_config.json"


class Loading(DiTTransformer2DModel, PeftAdapterMixin):
    """diffusers has its LoRA loader on other networks only, but it takes any."""


class LoadingUNet(UNet2DModel, PeftAdapterMixin):
    """The same of the U-Net without captions."""


def native() -> Backbone:
    return tiny.backbone()


def of_diffusers() -> Backbone:
    spec = tiny.spec(arch="dit_diffusers")
    torch.manual_seed(0)
    model = architecture("dit_diffusers").build(spec)
    unets.randomised(model)
    with torch.no_grad():  # the only positions that diffusers has
        model.get_parameter("pos_embed.pos_embed").copy_(position_table(16, 2))
    return model.freeze()


def without_classes(backbone: Backbone) -> Backbone:
    """Its null row adds nothing, as in the networks outside, which have no class table."""
    with torch.no_grad():
        backbone.class_table.zero_()
    return backbone


def unet() -> Backbone:
    return without_classes(unets.built(unets.unet_spec(class_names=())))


def text_unet() -> Backbone:
    return without_classes(unets.built(unets.text_spec(class_names=(), text=Text(7, 12))))


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "dit": native,
    "dit_diffusers": of_diffusers,
    "unet": unet,
    "unet_condition": text_unet,
}


def learnt(backbone: Backbone, targets: Iterable[str] = EVERYWHERE, **config: Any) -> Adapter:
    """A trained LoRA. Its class rows are the null row, which networks without a class table compute too."""
    null = backbone.spec.null_index
    values = {
        "rank": 4,
        "targets": [t for t in targets if any(s.role == t for s in backbone.sites().values())],
    }
    record = tiny.meta(kind="lora", config=values | config, null_index=null, block=(null + 1, null + 3))
    adapter = tiny.adapter(record, 1, backbone)
    rows = backbone.class_table.detach()[null].repeat(2, 1)
    return Adapter(record, {**adapter.tensors, "class_rows": rows})


def outside(backbone: Backbone) -> nn.Module:
    """The network that PEFT and diffusers know: theirs with the same weights, or the native DiT itself."""
    arch, own = backbone.spec.arch, backbone.state_dict()
    if arch == "dit":
        return native()
    model: nn.Module
    if isinstance(backbone, DiffusersDiT):
        config, state = to_diffusers(backbone)
        model = Loading(**{name: value for name, value in config.items() if not name.startswith("_")})
        model.load_state_dict(state, strict=False)
    else:
        model = (LoadingUNet if arch == "unet" else UNet2DConditionModel)(**backbone.spec.config)
        model.load_state_dict({name: t for name, t in own.items() if not name.startswith("class_")})
    model.eval()
    return model


@torch.no_grad()
def predicted(model: nn.Module, arch: str) -> Tensor:
    """What a network outside predicts, of no class."""
    x, t = tiny.inputs(3)
    null = torch.full((3,), 3)
    if arch == "dit":
        out: Tensor = model(x, t, null)
        return out
    if arch == "dit_diffusers":
        return Tensor(model(x, t, class_labels=null).sample)
    more = {"encoder_hidden_states": torch.zeros(3, 7, 12)} if arch == "unet_condition" else {}
    return Tensor(model(x, t, **more).sample)


@torch.no_grad()
def ours(adapter: Adapter, backbone: Backbone) -> Tensor:
    model = ComposedModel(backbone, tiny.FINGERPRINT)
    model.load(adapter)
    x, t = tiny.inputs(3)
    rows = torch.full((3,), model.null_row)
    out: Tensor = model(x, t, rows, [adapter.meta.task] * 3)
    return out


def read(path: Path, backbone: Backbone, **changes: Any) -> Adapter:
    null = backbone.spec.null_index
    facts: dict[str, Any] = {"task": "digits", "block": (null + 1, null + 3), "class_names": ("one", "two")}
    return read_lora(path, backbone, tiny.FINGERPRINT, **facts | changes)


def close(one: Tensor, other: Tensor, apart_from: Tensor) -> None:
    size = float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * size)
    assert not torch.allclose(one, apart_from, rtol=0, atol=1e-2 * size)


def same(one: Adapter, other: Adapter) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("arch", BACKBONES)
def test_peft_reads_what_is_written_for_it_and_predicts_the_same(
    tmp_path: Path, arch: str, alpha: float | None
) -> None:
    backbone = BACKBONES[arch]()
    adapter = learnt(BACKBONES[arch](), alpha=alpha)
    write_peft(adapter, backbone, tmp_path)
    bare = predicted(outside(backbone), arch)
    model = peft.PeftModel.from_pretrained(outside(backbone), tmp_path)
    loaded = {n for n, p in model.named_parameters() if ".lora_" in n and bool(p.detach().any())}
    assert len(loaded) == len(load_file(tmp_path / PEFT_FILE))
    close(predicted(model, arch), ours(adapter, backbone), bare)


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("arch", ["dit_diffusers", "unet", "unet_condition"])
def test_diffusers_reads_what_is_written_for_it_and_predicts_the_same(
    tmp_path: Path, arch: str, alpha: float | None
) -> None:
    backbone = BACKBONES[arch]()
    adapter = learnt(BACKBONES[arch](), alpha=alpha)
    write_diffusers(adapter, backbone, tmp_path)
    model: Any = outside(backbone)
    bare = predicted(model, arch)
    prefix = "transformer" if arch == "dit_diffusers" else "unet"
    model.load_lora_adapter(tmp_path, prefix=prefix, use_safetensors=True)
    close(predicted(model, arch), ours(adapter, backbone), bare)


def test_a_pipelines_loader_reads_it_too(tmp_path: Path) -> None:
    backbone = text_unet()
    adapter = learnt(text_unet(), alpha=6.0)
    write_diffusers(adapter, backbone, tmp_path)
    model = outside(backbone)
    bare = predicted(model, "unet_condition")
    loader = StableDiffusionLoraLoaderMixin
    tensors, alphas, config = loader.lora_state_dict(str(tmp_path), return_lora_metadata=True)
    loader.load_lora_into_unet(tensors, alphas, model, metadata=config)
    close(predicted(model, "unet_condition"), ours(adapter, backbone), bare)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("arch", BACKBONES)
def test_what_peft_saves_is_read_and_predicts_the_same(tmp_path: Path, arch: str, rslora: bool) -> None:
    backbone = BACKBONES[arch]()
    write_peft(learnt(BACKBONES[arch]()), backbone, tmp_path / "layers")
    targets = json.loads((tmp_path / "layers" / CONFIG).read_text())["target_modules"]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora)
    model = peft.get_peft_model(outside(backbone), config)
    _untie(model)
    model.save_pretrained(tmp_path / "saved")
    bare = predicted(outside(backbone), arch)
    close(ours(read(tmp_path / "saved", backbone), backbone), predicted(model.eval(), arch), bare)


def _untie(model: nn.Module) -> None:
    """Random LoRA tensors; the copies of diffusers' DiT stay equal."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                seed = len(name.partition("norm1.emb.")[2]) or sum(name.encode())
                generator = torch.Generator().manual_seed(seed)
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("arch", ["dit_diffusers", "unet", "unet_condition"])
def test_what_diffusers_saves_is_read_and_predicts_the_same(tmp_path: Path, arch: str) -> None:
    backbone = BACKBONES[arch]()
    model: Any = outside(backbone)
    bare = predicted(model, arch)
    inject = peft.LoraConfig(r=4, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    peft.inject_adapter_in_model(inject, model, "default")
    _untie(model)
    model.save_lora_adapter(tmp_path)
    close(ours(read(tmp_path, backbone), backbone), predicted(model, arch), bare)


@pytest.mark.parametrize("write", [write_peft, write_diffusers])
@pytest.mark.parametrize("arch", BACKBONES)
def test_written_and_read_again_every_tensor_is_the_same_to_the_bit(
    tmp_path: Path, arch: str, write: Callable[[Adapter, Backbone, Path], None]
) -> None:
    backbone = BACKBONES[arch]()
    adapter = learnt(BACKBONES[arch](), alpha=3.7)
    adapter = Adapter(
        adapter.meta, {**adapter.tensors, "class_rows": torch.randn(2, backbone.class_table.shape[1])}
    )
    if arch == "dit" and write is write_diffusers:
        with pytest.raises(ConfigInvalid, match="PEFT's format"):
            write(adapter, backbone, tmp_path)
        return
    write(adapter, on_meta(backbone.spec, type(backbone)), tmp_path)
    again = read(tmp_path, backbone)
    same(adapter, again)
    assert again.meta.config["alpha"] == pytest.approx(3.7)
    assert again.meta.config["rank"] == 4


def test_a_lora_of_the_usual_layers_joins_the_group_of_those_learnt_here(tmp_path: Path) -> None:
    backbone = native()
    adapter = learnt(native(), targets=())
    write_peft(adapter, backbone, tmp_path)
    again = read(tmp_path, backbone)
    assert again.meta.config == {"rank": 4, "alpha": None, "targets": []}
    some = learnt(native(), targets=["fc2", "proj"])
    write_peft(some, backbone, tmp_path)
    assert sorted(read(tmp_path, backbone).meta.config["targets"]) == ["fc2", "proj"]
    one = learnt(native())
    layer = "layers.blocks.1.attn.qkv."
    kept = {n: t for n, t in one.tensors.items() if n.startswith(layer) or n == "class_rows"}
    write_peft(Adapter(one.meta, kept), backbone, tmp_path)
    assert read(tmp_path, backbone).meta.config["targets"] == ["blocks.1.attn.qkv"]


def test_without_class_rows_beside_the_file_a_tasks_rows_start_as_the_null_row(tmp_path: Path) -> None:
    backbone = native()
    write_peft(learnt(native()), backbone, tmp_path)
    (tmp_path / "class_rows.safetensors").unlink()
    rows = read(tmp_path, backbone).tensors["class_rows"]
    assert torch.equal(rows, backbone.class_table[3].repeat(2, 1))
    save_file({"class_rows": torch.zeros(3, 16)}, tmp_path / "class_rows.safetensors")
    with pytest.raises(AdapterFileInvalid, match="2 × 16"):
        read(tmp_path, backbone)


@pytest.mark.parametrize("arch", ["dit", "unet"])
def test_layers_of_several_ranks_and_alphas_are_padded_to_the_largest_exactly(
    tmp_path: Path, arch: str
) -> None:
    backbone = BACKBONES[arch]()
    targets = ["qkv", "fc1"] if arch == "dit" else ["to_q", "conv1"]
    config = peft.LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=targets,
        rank_pattern={targets[1]: 5},
        alpha_pattern={targets[1]: 3} | ({"^blocks.0.attn.qkv": 7} if arch == "dit" else {}),
    )
    model = peft.get_peft_model(outside(backbone), config)
    _untie(model)
    model.save_pretrained(tmp_path)
    adapter = read(tmp_path, backbone)
    assert (adapter.meta.config["rank"], adapter.meta.config["alpha"]) == (5, None)
    bare = predicted(outside(backbone), arch)
    close(ours(adapter, backbone), predicted(model.eval(), arch), bare)


OLDER: dict[str, Callable[[str], str]] = {
    "processors": lambda name: (
        name.replace(".to_out.0.lora_A.", ".processor.to_out_lora.down.")
        .replace(".to_out.0.lora_B.", ".processor.to_out_lora.up.")
        .replace(".to_q.lora_A.", ".processor.to_q_lora.down.")
        .replace(".to_q.lora_B.", ".processor.to_q_lora.up.")
    ),
    "down and up": lambda name: name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."),
    "linear layers": lambda name: name.replace("lora_A", "lora_linear_layer.down").replace(
        "lora_B", "lora_linear_layer.up"
    ),
}


@pytest.mark.parametrize("spelling", OLDER)
def test_older_spellings_of_diffusers_are_read(tmp_path: Path, spelling: str) -> None:
    backbone = text_unet()
    adapter = learnt(text_unet(), ["query", "proj"])
    write_diffusers(adapter, backbone, tmp_path)
    tensors = load_file(tmp_path / DIFFUSERS_FILE)
    older = {OLDER[spelling](name): tensor for name, tensor in tensors.items()}
    assert older.keys().isdisjoint(tensors)
    save_file(older, tmp_path / "older.safetensors")
    same(adapter, read(tmp_path / "older.safetensors", backbone))


def test_files_of_kohyas_trainers_are_read_with_their_alphas(tmp_path: Path) -> None:
    backbone = text_unet()
    adapter = learnt(text_unet(), ["query", "conv"], alpha=2.0)
    flat: dict[str, Tensor] = {}
    for layer, parts in adapter.layers().items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        kernel = (1, 1) if parts["A"].dim() == 4 else ()
        flat |= {
            f"{name}.lora_down.weight": parts["A"].clone(),
            f"{name}.lora_up.weight": parts["B"].reshape(*parts["B"].shape, *kernel).clone(),
            f"{name}.alpha": torch.tensor(2.0),
        }
    save_file(flat, tmp_path / "lora.safetensors")
    again = read(tmp_path / "lora.safetensors", backbone)
    same(adapter, again)
    assert again.meta.config["alpha"] == 2.0


def test_sixteen_bit_tensors_are_read_exactly(tmp_path: Path) -> None:
    backbone = native()
    write_peft(learnt(native()), backbone, tmp_path)
    half = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / PEFT_FILE).items()}
    save_file(half, tmp_path / PEFT_FILE)
    found = read(tmp_path, backbone).tensors["layers.blocks.0.attn.qkv.A"]
    assert found.dtype == torch.float32
    assert torch.equal(found.bfloat16(), half["base_model.model.blocks.0.attn.qkv.lora_A.weight"])


QKV = "base_model.model.blocks.0.attn.qkv"
SPOILT: dict[str, tuple[Mapping[str, Tensor | None], str]] = {
    "an unknown layer": (
        {"base_model.model.blocks.7.attn.qkv.lora_A.weight": torch.ones(4, 16)}
        | {"base_model.model.blocks.7.attn.qkv.lora_B.weight": torch.ones(48, 4)},
        "Did you mean",
    ),
    "another shape": ({f"{QKV}.lora_A.weight": torch.ones(4, 17)}, "shape"),
    "another shape of B": ({f"{QKV}.lora_B.weight": torch.ones(47, 4)}, "shape"),
    "another rank": (
        {f"{QKV}.lora_A.weight": torch.ones(3, 16), f"{QKV}.lora_B.weight": torch.ones(48, 3)},
        "its config says 4",
    ),
    "ranks that do not agree": ({f"{QKV}.lora_B.weight": torch.ones(48, 3)}, "shape"),
    "half a layer": ({f"{QKV}.lora_B.weight": None}, "one of its two"),
    "a vector": ({f"{QKV}.lora_A.weight": torch.ones(4)}, "no matrices"),
    "not finite": ({f"{QKV}.lora_A.weight": torch.full((4, 16), torch.nan)}, "not finite"),
    "whole numbers": ({f"{QKV}.lora_A.weight": torch.ones(4, 16, dtype=torch.int64)}, "I64"),
    "a DoRA": ({f"{QKV}.lora_magnitude_vector": torch.ones(48)}, "DoRA"),
    "a bias": ({f"{QKV}.lora_B.bias": torch.ones(48)}, "none of a LoRA's"),
    "a whole module": (
        {"base_model.model.final_layer.linear.weight": torch.ones(16, 16)},
        "none of a LoRA's",
    ),
    "an embedding": ({"base_model.model.y_embedder.lora_embedding_A": torch.ones(4, 4)}, "embedding"),
    "a text encoder": ({"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(4, 4)}, "text encoder"),
    "an alpha and a config": ({f"{QKV}.alpha": torch.ones(())}, "which hold"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_file_that_does_not_fit_in_every_tensor_is_refused(tmp_path: Path, spoilt: str) -> None:
    backbone = native()
    write_peft(learnt(native()), backbone, tmp_path)
    changes, reason = SPOILT[spoilt]
    tensors: dict[str, Tensor | None] = {**load_file(tmp_path / PEFT_FILE), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, tmp_path / PEFT_FILE)
    with pytest.raises(AdapterFileInvalid, match=reason):
        read(tmp_path, backbone)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", "LOHA"),
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["y_embedder"]),
        ("init_lora_weights", "pissa_niter_4"),
        ("use_qalora", True),
        ("layer_replication", [[0, 1]]),
        ("rank_pattern", {"(a+)+$": 4}),
        ("alpha_pattern", []),
        ("alpha_pattern", [1]),
        ("lora_alpha", "much"),
        ("lora_alpha", -1),
        ("r", 0),
    ],
)
def test_a_config_that_says_more_than_plain_lora_is_refused(tmp_path: Path, setting: str, value: Any) -> None:
    backbone = native()
    write_peft(learnt(native()), backbone, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {setting: value}))
    if value == []:
        read(tmp_path, backbone)
        return
    with pytest.raises((AdapterFileInvalid, ConfigInvalid)):
        read(tmp_path, backbone)


def test_files_that_are_no_lora_files_are_refused(tmp_path: Path) -> None:
    backbone = native()
    with pytest.raises(AdapterFileInvalid, match="no such file"):
        read(tmp_path, backbone)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(AdapterFileInvalid, match="no pickles"):
        read(tmp_path, backbone)
    (tmp_path / PEFT_FILE).write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(AdapterFileInvalid, match="safetensors"):
        read(tmp_path, backbone)
    save_file({}, tmp_path / PEFT_FILE)
    with pytest.raises(AdapterFileInvalid, match="no LoRA tensors"):
        read(tmp_path, backbone)
    (tmp_path / CONFIG).write_text("[")
    with pytest.raises(AdapterFileInvalid):
        read(tmp_path, backbone)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(AdapterFileInvalid, match="not a JSON object"):
        read(tmp_path, backbone)


def test_a_lora_of_another_network_is_refused(tmp_path: Path) -> None:
    write_diffusers(learnt(of_diffusers()), of_diffusers(), tmp_path)
    with pytest.raises(AdapterFileInvalid, match="of another network"):
        read(tmp_path, text_unet())
    write_peft(learnt(of_diffusers()), of_diffusers(), tmp_path)
    with pytest.raises(AdapterFileInvalid, match="none of this unet_condition"):
        read(tmp_path, text_unet())
    with pytest.raises(ConfigInvalid, match="no layer"):
        write_peft(learnt(of_diffusers()), native(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_kinds_have_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="of the kind affiner"):
        write_peft(tiny.adapter(tiny.meta()), native(), tmp_path)


def test_copies_of_one_module_that_were_changed_apart_are_refused(tmp_path: Path) -> None:
    backbone = of_diffusers()
    write_diffusers(learnt(of_diffusers()), backbone, tmp_path)
    tensors = load_file(tmp_path / DIFFUSERS_FILE)
    name = "transformer.transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.lora_B.weight"
    save_file({**tensors, name: tensors[name] + 1}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileInvalid, match="one here"):
        read(tmp_path / "a.safetensors", backbone)
    pair = (name, name.replace("lora_B", "lora_A"))
    save_file({n: t for n, t in tensors.items() if n not in pair}, tmp_path / "b.safetensors")
    with pytest.raises(AdapterFileInvalid, match="one here"):
        read(tmp_path / "b.safetensors", backbone)


def test_dilated_convolutions_which_peft_computes_otherwise_are_refused(tmp_path: Path) -> None:
    backbone = unet()
    adapter = learnt(unet(), ["conv"])
    layer = next(name for name, site in backbone.sites().items() if site.role == "conv")
    convolution = backbone.get_submodule(layer)
    assert isinstance(convolution, nn.Conv2d)
    convolution.dilation = (2, 2)
    with pytest.raises(ConfigInvalid, match="dilation"):
        write_peft(adapter, backbone, tmp_path)


def test_peft_is_told_whole_names_where_one_is_another_modules_ending(tmp_path: Path) -> None:
    """A latent backbone's VAE has a `conv_in` too."""
    backbone = unets.built(unets.latent_spec(class_names=()))
    adapter = learnt(unets.built(unets.latent_spec(class_names=())), ["stem"])
    write_peft(adapter, backbone, tmp_path)
    model = peft.PeftModel.from_pretrained(unets.built(unets.latent_spec(class_names=())), tmp_path)
    changed = [name for name, _ in model.named_modules() if name.endswith(".lora_A")]
    assert changed == ["base_model.model.conv_in.lora_A"]

"""A diffusers folder as one backbone: a whole pipeline, or the folder of its denoiser alone.

Of a pipeline are taken: the denoiser, the VAE, the text encoder with its tokenizer, the noise schedule. Only
safetensors weights are read; nothing in the folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affinery.backbones import architecture
from affinery.backbones.contract import Backbone, BackboneSpec, Latent, Text, on_meta
from affinery.backbones.diffusers_schedule import schedule_of
from affinery.backbones.latent_space import VAE_SETTINGS
from affinery.backbones.model_folder import OnNote, ReadTensors, read_object, read_weights
from affinery.backbones.network_config import arguments
from affinery.backbones.text_encoder import CLIP_DEFAULTS, END, tokenizer
from affinery.errors import BackboneFileInvalid, ConfigInvalid, words_of
from affinery.importing import IMPORTING

UNETS = {"UNet2DModel": "unet", "UNet2DConditionModel": "unet_condition"}
TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")
DENOISERS = ("unet", "transformer")
TAKEN = (*DENOISERS, "vae", "text_encoder", "tokenizer", "scheduler")
BESIDE = (*DENOISERS, "scheduler")
HARMLESS = ("safety_checker", "feature_extractor")  # they judge finished images
CLASS_TABLE = "class_embedding.weight"
STABLE_DIFFUSION = Latent(channels=4, factor=8, scaling=0.18215)
TEXT_LENGTH, TEXT_GUIDANCE = 77, 7.5


def read_folder(
    path: Path, on_note: OnNote = lambda _: None, read_tensors: ReadTensors = read_weights
) -> Backbone:
    """The frozen backbone in a diffusers folder.

    on_note: told what was assumed or converted. Raises BackboneFileInvalid.
    """
    try:
        return _Folder(path, on_note, read_tensors).read()
    except BackboneFileInvalid:
        raise
    except ConfigInvalid as error:
        raise BackboneFileInvalid(str(path), str(error)) from error
    except Exception as error:  # what others wrote may be wrong in any way, anywhere in a constructor
        reason = f"its configs are not as diffusers writes them ({type(error).__name__}: {words_of(error)})."
        raise BackboneFileInvalid(str(path), reason) from error


class _Folder:
    """One folder while it is read: where its parts lie, and what they say."""

    def __init__(self, path: Path, on_note: OnNote, read_tensors: ReadTensors) -> None:
        self.path, self.on_note, self.read_tensors = path, on_note, read_tensors
        self.index: dict[str, Any] = {}
        if (path / "model_index.json").is_file():
            self.index = read_object(path / "model_index.json")
        elif not (path / "config.json").is_file():
            raise BackboneFileInvalid(
                str(path),
                "it holds neither a model_index.json (a pipeline) nor a config.json (a model). Give the "
                "folder that save_pretrained wrote.",
            )
        odd = [name for name in self.index if name not in (*TAKEN, *HARMLESS) and self._names(name)]
        if odd:
            raise BackboneFileInvalid(
                str(path),
                f"it is a {self.index.get('_class_name')} with a part that is not supported: {odd[0]}. "
                f"Supported parts: {', '.join(TAKEN)}.",
            )

    def _names(self, part: str) -> bool:
        """Whether the pipeline has such a part; an absent one stands there as [null, null]."""
        value = self.index.get(part)
        return isinstance(value, list) and len(value) == 2 and None not in value

    def part(self, name: str) -> Path | None:
        """The folder of one part, or None where the pipeline has none. Raises BackboneFileInvalid.

        The first pipelines kept denoiser and scheduler beside their model_index.json.
        """
        if not self._names(name):
            return None
        folder = self.path / name
        config = "scheduler_config.json" if name == "scheduler" else "config.json"
        if not folder.is_dir() and name in BESIDE and (self.path / config).is_file():
            return self.path
        if not folder.is_dir():
            raise BackboneFileInvalid(
                str(self.path), f"its model_index.json names {name}/, which is missing."
            )
        return folder

    def read(self) -> Backbone:
        folder = next((found for name in DENOISERS if (found := self.part(name))), None)
        if folder is None and self.index:
            raise BackboneFileInvalid(
                str(self.path), "its model_index.json names neither unet nor transformer."
            )
        folder = folder or self.path
        config = read_object(folder / "config.json")
        name = config.get("_class_name")
        if name not in (*UNETS, *TRANSFORMERS):
            listing = ", ".join((*UNETS, *TRANSFORMERS))
            raise BackboneFileInvalid(str(folder), f"it holds a {name}; supported are: {listing}.")
        if name in TRANSFORMERS:
            return self._transformer(folder, config)
        return self._unet(folder, config, UNETS[name])

    def _transformer(self, folder: Path, config: Mapping[str, Any]) -> Backbone:
        with IMPORTING:
            from affinery.backbones.dit_diffusers import from_diffusers

        facts: dict[str, Any] = self._schedule()
        if names := self._class_names():
            facts["class_names"] = names
        latent, state = self._vae()
        if latent is not None:
            facts["latent"] = latent
        state |= self.read_tensors(folder, self.on_note)
        backbone: Backbone = from_diffusers(config, state, source=str(folder), **facts)
        return backbone

    def _unet(self, folder: Path, config: Mapping[str, Any], arch: str) -> Backbone:
        state = self.read_tensors(folder, self.on_note)
        table = state.pop(CLASS_TABLE, None)
        names, table = self._classes(table)
        latent, vae = self._vae()
        text, encoder = self._text(config) if arch == "unet_condition" else (None, {})
        if latent is None and arch == "unet_condition" and config.get("in_channels") == 4:
            latent = STABLE_DIFFUSION
            self.on_note("There is no VAE, so it is taken to denoise the latents of Stable Diffusion's.")
        spec = BackboneSpec(
            arch=arch,
            config=_settings(config, arch),
            class_names=names,
            image_size=_side(config) * (latent.factor if latent else 1),
            channels=_image_channels(config, latent),
            latent=latent,
            text=text,
            defaults={"sampler": {"guidance": TEXT_GUIDANCE}} if text else {},
            **self._schedule(),
        )
        return self._built(spec, state | vae | encoder, table)

    def _built(self, spec: BackboneSpec, state: dict[str, Tensor], table: Tensor | None) -> Backbone:
        spec.check()
        backbone = on_meta(spec, architecture(spec.arch))
        needed = backbone.state_dict()
        state[CLASS_TABLE] = torch.zeros(needed[CLASS_TABLE].shape) if table is None else table
        odd = [f"{name} is missing" for name in needed.keys() - state.keys()]
        odd += [f"{name} is not known" for name in state.keys() - needed.keys()]
        odd += [
            f"{name} has the shape {list(state[name].shape)}, not {list(needed[name].shape)}"
            for name in needed.keys() & state.keys()
            if state[name].shape != needed[name].shape
        ]
        if odd:
            raise BackboneFileInvalid(
                str(self.path),
                f"its weights are not those of its config: tensor {min(odd)} ({len(odd)} such).",
            )
        backbone.load_state_dict(state, strict=True, assign=True)
        return backbone.freeze()

    def _schedule(self) -> dict[str, Any]:
        """→ the spec's `schedule` and `prediction`."""
        folder = self.part("scheduler")
        if folder is None:
            self.on_note("There is no scheduler, so its noise schedule is taken to be diffusers' default.")
            return {}
        schedule, prediction = schedule_of(read_object(folder / "scheduler_config.json"))
        return {"schedule": schedule, "prediction": prediction}

    def _class_names(self) -> tuple[str, ...]:
        """The pipeline's names of its classes, in order; none where it does not give them."""
        names = self.index.get("id2label") or {}
        if not isinstance(names, dict) or names.keys() != {str(i) for i in range(len(names))}:
            raise ConfigInvalid("id2label", "it does not name the classes 0, 1, 2 … in its model_index.json.")
        return tuple(str(names[str(i)]) for i in range(len(names)))

    def _classes(self, table: Tensor | None) -> tuple[tuple[str, ...], Tensor | None]:
        """→ the names of the classes, and their table with the null row last; None where it has no classes.

        diffusers does not say whether a table has a null row. It has where one row more is there than names.
        """
        if table is None:
            return (), None
        names = self._class_names()
        if len(names) == len(table) - 1:
            return names, table
        if names and len(names) != len(table):
            raise ConfigInvalid(
                "id2label", f"it names {len(names)} classes, but the table has {len(table)} rows."
            )
        self.on_note(
            f"Its table has {len(table)} classes and no null row; the mean of the rows is taken for one. "
            "Where the last row is the null row, name the others in model_index.json: id2label."
        )
        names = names or tuple(f"class {i}" for i in range(len(table)))
        return names, torch.cat([table, table.mean(dim=0, keepdim=True)])

    def _vae(self) -> tuple[Latent | None, dict[str, Tensor]]:
        """→ the latent space and the VAE's tensors."""
        folder = self.part("vae")
        if folder is None:
            return None, {}
        with IMPORTING:
            from diffusers import AutoencoderKL

        config = read_object(folder / "config.json")
        if config.get("_class_name") != "AutoencoderKL":
            raise ConfigInvalid("vae", f"it is a {config.get('_class_name')}; AutoencoderKL is supported.")
        for name in ("latents_mean", "latents_std"):
            if config.get(name) is not None:
                raise ConfigInvalid("vae", f"{name} is not supported; scaling_factor and shift_factor are.")
        settings = arguments(AutoencoderKL) | config
        vae = {name: settings[name] for name in VAE_SETTINGS}
        latent = Latent(
            channels=vae["latent_channels"],
            factor=2 ** (len(vae["block_out_channels"]) - 1),
            scaling=float(settings["scaling_factor"]),
            shift=float(settings["shift_factor"] or 0.0),
            vae=vae,
        )
        return latent, {
            f"vae.{name}": tensor for name, tensor in self.read_tensors(folder, self.on_note).items()
        }

    def _text(self, denoiser: Mapping[str, Any]) -> tuple[Text, dict[str, Tensor]]:
        """→ what captions the denoiser takes, and the tensors of the text encoder."""
        folder, words = self.part("text_encoder"), self.part("tokenizer")
        if folder is None or words is None:
            self.on_note("There is no text encoder, so captions must come as embeddings.")
            return Text(TEXT_LENGTH, denoiser.get("cross_attention_dim", 1280)), {}
        config = read_object(folder / "config.json")
        if config.get("architectures") != ["CLIPTextModel"]:
            raise ConfigInvalid("text_encoder", f"{config.get('architectures')} is none; CLIPTextModel is.")
        clip = {name: config.get(name, default) for name, default in CLIP_DEFAULTS.items()}
        vocab, merges = _vocabulary(words)
        pad, length = _tokenizer_settings(words)
        tokenizer(vocab, merges, pad, clip["vocab_size"])  # whether it is one
        settings = {"clip": clip, "pad": pad, "vocab_bytes": len(vocab), "merges_bytes": len(merges)}
        state = {"text.vocab": _byte_tensor(vocab), "text.merges": _byte_tensor(merges)}
        for name, tensor in self.read_tensors(folder, self.on_note).items():
            current = name.removeprefix("text_model.")
            if current != "embeddings.position_ids":
                state[f"text.clip.{current}"] = tensor
        return Text(min(length, clip["max_position_embeddings"]), clip["hidden_size"], settings), state


def _settings(config: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """What a U-Net's config says beyond classes. Raises ConfigInvalid for what is not supported."""
    ours: Any = architecture(arch)
    defaults = arguments(ours.NETWORK)
    found = {}
    for name, value in config.items():
        if name in ours.SETTINGS:
            found[name] = value
        elif not name.startswith("_") and name != "num_class_embeds" and value != defaults.get(name):
            raise ConfigInvalid("config.json", f"{name} = {value!r} is not supported.")
    return found


def _side(config: Mapping[str, Any]) -> int:
    """The side of what is denoised."""
    size = config.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int:
        raise ConfigInvalid("sample_size", f"{size!r} is no side of a square; state it in config.json.")
    return sides[0]


def _image_channels(config: Mapping[str, Any], latent: Latent | None) -> int:
    if latent is None:
        return int(config.get("in_channels", 3))
    return 3 if latent.vae is None else int(latent.vae["in_channels"])


def _vocabulary(folder: Path) -> tuple[bytes, bytes]:
    """→ the tokenizer's pieces and merges, as the text encoder keeps them."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab: Any = read_object(folder / "vocab.json")
        merges: Any = (folder / "merges.txt").read_text("utf-8").splitlines()
    elif (folder / "tokenizer.json").is_file():
        model = read_object(folder / "tokenizer.json").get("model")
        vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    else:
        raise ConfigInvalid("tokenizer", "it has neither vocab.json with merges.txt nor tokenizer.json.")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ConfigInvalid("tokenizer", "it is no byte-pair tokenizer.")
    lines = [line if isinstance(line, str) else " ".join(map(str, line)) for line in merges]
    lines = [line for line in lines if line and not line.startswith("#version")]
    text = json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))
    return text.encode(), "\n".join(lines).encode()


def _tokenizer_settings(folder: Path) -> tuple[str, int]:
    """→ the token that fills captions up, and their length."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_object(folder / name)
    pad = settings.get("pad_token") or END
    length = settings.get("model_max_length")
    return str(pad["content"] if isinstance(pad, dict) else pad), length if type(
        length
    ) is int else TEXT_LENGTH


def _byte_tensor(content: bytes) -> Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)

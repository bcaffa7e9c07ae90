"""affinery compose, affinery export."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery.errors import ConfigInvalid
from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say
from affinery_app.cli.place import UrlOption, place
from affinery_app.figures import size

if TYPE_CHECKING:
    from orchestration.composing import Sum

FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        help="bundle, aotinductor, diffusers, dit, mlflow, onnx, safetensors or torch-export.",
        autocompletion=completion.formats,
    ),
]
ExportTaskOption = Annotated[
    str | None,
    typer.Option("--task", help="The task, for a format that takes one.", autocompletion=completion.tasks),
]
BackboneOption = Annotated[
    bool, typer.Option("--backbone/--no-backbone", help="Whether a bundle holds its backbone's file.")
]
UnverifiedOption = Annotated[
    bool, typer.Option("--unverified", help="Ship members too of which nothing was proved here.")
]


def compose(
    name: Annotated[str, typer.Argument(help="The composition's name.")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            help="A task, or task@version; repeat for more.",
            autocompletion=completion.adapters,
        ),
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            help="A weighted sum of tasks, as one more task: a:0.6,b:0.4, or ink=a:0.6,b:0.4 to name it; "
            "repeat for more."
        ),
    ] = None,
    layer_weight: Annotated[
        list[str] | None,
        typer.Option(
            help="In sums, another weight of a task for some layers (a role, or a pattern of names): "
            "a:qkv=0.2; repeat for more, the last that fits counts."
        ),
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put adapters of one backbone together: a model whose batches may mix their tasks, and sums of them."""
    from affinery.merge_recipe import in_words

    sums = _sums(merge or [], layer_weight or [])
    with place(url, workspace) as where:
        record = where.compose(name, task or [], sums)
    if as_json:
        emit(record.to_json())
        return
    told = [("composition", record.ref), ("backbone", record.backbone), ("members", record.members)]
    told += [(f"sum {raw['name']}", in_words(raw["of"], record.members)) for raw in _recipe(record.recipe)]
    fields(told)
    if url:
        following(f"affinery export {quote(record.ref)} --out FOLDER")
    else:
        following(f"affinery export {quote(record.ref)}", f"affinery sample {quote(record.ref)}")


def _sums(merges: Iterable[str], layer_weights: Iterable[str]) -> list[Sum]:
    """What `--merge` and `--layer-weight` mean. Raises ConfigInvalid."""
    from affinery.merge_recipe import Weight
    from orchestration.composing import Sum

    layers: dict[str, list[tuple[str, float]]] = {}
    for text in layer_weights:
        task, colon, rest = text.rpartition("=")[0].partition(":")
        if not colon or not rest:
            raise ConfigInvalid("--layer-weight", f"{text!r} is not of the form TASK:LAYERS=WEIGHT.")
        layers.setdefault(task, []).append((rest, _number("--layer-weight", text, text.rpartition("=")[2])))
    sums = []
    for text in merges:
        name, equals, listing = text.rpartition("=")
        weights: dict[str, Weight] = {}
        for part in listing.split(","):
            ref, colon, weight = part.strip().rpartition(":")
            if not colon or not ref or ref in weights:
                raise ConfigInvalid("--merge", f"{part!r} is not of the form TASK:WEIGHT, or there twice.")
            weights[ref] = Weight(_number("--merge", part, weight), tuple(layers.get(ref, ())))
        sums.append(Sum(weights, name if equals else None))
    unused = layers.keys() - {ref for one in sums for ref in one.weights}
    if unused:
        raise ConfigInvalid("--layer-weight", f"{min(unused)!r} is in no --merge.")
    return sums


def _number(option: str, text: str, weight: str) -> float:
    from math import isfinite

    try:
        value = float(weight)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise ConfigInvalid(option, f"{weight!r} in {text!r} is not a number.")
    return value


def _recipe(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    return list(recipe.get("merges", ()))


def export(
    ref: Annotated[
        str,
        typer.Argument(
            help="The composition: name, or name@version.", autocompletion=completion.compositions
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where it goes; folders on the way to it are made.",
            show_default="below exports/ of the workspace, or of the service's",
        ),
    ] = None,
    file_format: FormatOption = "bundle",
    task: ExportTaskOption = None,
    backbone: BackboneOption = True,
    sign: Annotated[
        Path | None, typer.Option(help="Sign the bundle with this elliptic key (PEM), in OpenSSF's format.")
    ] = None,
    unverified: UnverifiedOption = False,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a composition as a bundle, a folder that verifies itself, or in another format.

    Load a bundle with affinery.load(FOLDER). Other formats are loaded back and compared before this ends.
    By a service it is a job, which is waited for; what it wrote is fetched where --out says.
    """
    from orchestration import exports

    asked = exports.Asked(ref, file_format, out, task, unverified, backbone)
    if sign is not None and file_format != exports.BUNDLE:
        raise ConfigInvalid("--sign", "only a bundle is signed.")
    with place(url, workspace) as where:
        record = where.export(asked, sign)
    if as_json:
        emit(record)
        return
    told = [
        (record["format"], record["path"] or record["ref"]),
        ("digest", record["digest"]),
        ("size", size(record["size_bytes"])),
        ("composition", record["composition"]),
    ]
    if record["difference"] is not None:
        told.append(("loaded back", f"differs by {record['difference']:.1e} of the largest value at most"))
    fields(told)
    for note in record["notes"]:
        say(f"note: {note}")
    if record["path"] is None:
        following(f"affinery download {quote(record['ref'])} FOLDER")
    elif record["format"] == exports.BUNDLE:
        following(f"affinery sample {quote(record['path'])}")

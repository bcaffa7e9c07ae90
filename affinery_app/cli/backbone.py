"""affinery backbone add | list | show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from affinery.counting import counted
from affinery_app.cli import completion, rebase
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.cli.place import UrlOption, place
from affinery_app.cli.progress import stages
from affinery_app.figures import size

app = typer.Typer(help="Frozen denoisers, by version and fingerprint.", no_args_is_help=True)


@app.command("add")
def add(
    path: Annotated[
        Path, typer.Argument(help="A backbone file, a diffusers folder, or an official DiT checkpoint.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Its name in the registry.", show_default="the file's or the folder's")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            help="The backbone that it was made from.", show_default="the version before it of this name"
        ),
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a backbone, converted to one file where it is not. The same weights again change nothing."""
    called = name or (path.resolve().name if path.is_dir() else path.stem)
    with place(url, workspace) as where, stages(called) as advance:
        record, parameters = where.add_backbone(
            called, path, parent, lambda note: say(f"note: {note}"), advance
        )
    if as_json:
        emit(record.to_json() | {"parameters": parameters})
        return
    fields(
        [
            ("backbone", record.ref),
            ("fingerprint", record.digest),
            *([("made from", record.parent)] if record.parent else []),
            ("parameters", f"{parameters:,}"),
            ("classes", record.num_classes),
            ("null row", record.null_index),
        ]
    )
    if record.parent is not None:
        rebase_it = "job add rebase" if url else "backbone rebase --dry-run"
        following(f"affinery {rebase_it} {quote(record.parent)} {quote(record.ref)}")
        return
    following(
        "affinery dataset add NAME FOLDER",
        f"affinery task add NAME --dataset NAME --backbone {quote(record.name)}",
    )


@app.command("list")
def list_all(url: UrlOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """All backbone versions."""
    with place(url, workspace) as where:
        found = where.backbones()
    if as_json:
        emit([record.to_json() for record in found])
        return
    table(
        ["backbone", "fingerprint", "classes", "size", "added"],
        [
            (r.ref, r.digest[:12], r.num_classes, size(r.size_bytes), f"{r.created_at:%Y-%m-%d %H:%M}")
            for r in found
        ],
        "No backbone yet. Add one: affinery backbone add FILE.safetensors",
    )


@app.command("show")
def show(
    ref: Annotated[str, typer.Argument(help="name, or name@version.", autocompletion=completion.backbones)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """One backbone: its facts, its class table and who owns which rows."""
    with place(url, workspace) as where:
        record = where.backbone(ref)
        newer = [each.ref for each in where.backbones() if each.parent == record.ref]
        known = where.tasks()
    owners = [task for task in known if task.backbone_id == record.node_id]
    followed = {task.predecessor: task for task in known if task.predecessor}
    blocks: list[dict[str, Any]] = [{"owner": record.ref, "rows": [0, record.null_index + 1]}]
    for task in owners:
        after = followed.get(task.name)
        block = {
            "owner": task.name,
            "rows": list(task.block),
            "follows": task.predecessor,
            "followed_by": None,
        }
        blocks.append(block if after is None else block | {"followed_by": f"{after.name} ({after.state})"})
    if as_json:
        emit(record.to_json() | {"newer": newer, "class_table": blocks})
        return
    spec = record.spec
    side = spec.get("image_size")
    fields(
        [
            ("backbone", record.ref),
            ("fingerprint", record.digest),
            ("architecture", spec.get("arch")),
            ("image", f"{side} × {side}, {counted(spec.get('channels', 0), 'channel')}"),
            ("denoises", _space(spec.get("latent"))),
            ("captions", _captions(spec.get("text"))),
            ("prediction", spec.get("prediction")),
            ("size", size(record.size_bytes)),
            ("null row", record.null_index),
            ("made from", record.parent),
            ("newer", newer or None),
            ("added", f"{record.created_at:%Y-%m-%d %H:%M} UTC"),
        ]
    )
    print()
    rows = [(f"[{b['rows'][0]}, {b['rows'][1]})", b["owner"], *map(b.get, _LINE)) for b in blocks]
    table(["class rows", "owner", "follows", "followed by"], rows, "")
    left = [task.name for task in owners if task.name not in followed]
    if newer and left:
        say(f"still on {record.ref} alone: {', '.join(left)}")
        following(f"affinery backbone rebase {quote(record.ref)} {quote(newer[-1])} --dry-run")


_LINE = ("follows", "followed_by")


def _space(latent: Mapping[str, Any] | None) -> str:
    if latent is None:
        return "pixels"
    vae = "its VAE" if latent.get("vae") else "a VAE that its file does not hold"
    return f"latents of {vae}: {latent['channels']} channels, 1/{latent['factor']} of the side"


def _captions(text: Mapping[str, Any] | None) -> str:
    if text is None:
        return "none"
    encoder = "its text encoder" if text.get("encoder") else "a text encoder that its file does not hold"
    return f"{text['length']} tokens of {encoder}"


app.command("rebase")(rebase.rebase)

"""affinery adapter export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, say
from affinery_app.figures import size


def export(
    ref: Annotated[
        str,
        typer.Argument(
            help="task, or task@version: an adapter of the kind lora.", autocompletion=completion.adapters
        ),
    ],
    file_format: Annotated[
        str, typer.Option("--format", help="peft or diffusers.", autocompletion=completion.lora_formats)
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; files of the same names are replaced.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a LoRA in the file format of PEFT or diffusers, its tensors to the bit."""
    from affinery_app.wiring import open_workspace
    from orchestration.exchange import export_lora

    space = open_workspace(workspace)
    record = export_lora(space.sessions, space.store, ref, file_format, out)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    if as_json:
        emit(
            {
                "adapter": record.ref,
                "digest": record.digest,
                "format": file_format,
                "path": str(out),
                "files": files,
            }
        )
        return
    fields(
        [("adapter", record.ref), ("folder", out), *((name, size(count)) for name, count in files.items())]
    )
    say("note: PEFT and diffusers know no class rows; they stand in class_rows.safetensors.")

"""What a dataset is said to be when it is added, however it comes, and what is told of it then."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from affinery_app.cli.output import emit, fields, following, printable, say, table

if TYPE_CHECKING:
    from registry.records import DatasetRecord

LicenceOption = Annotated[str | None, typer.Option(help="Under what terms the images are.")]
OriginOption = Annotated[str | None, typer.Option("--source", help="Where they come from, in words.")]
SplitOption = Annotated[
    str | None, typer.Option(help="Which split to learn from, or all.", show_default="train")
]
SkipBadOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad/--strict", help="Leave out images that cannot be learnt from, instead of refusing."
    ),
]


def tell_added(record: DatasetRecord, notes: list[str], as_json: bool, *next_steps: str) -> None:
    """The version that was recorded, its balance, and what to do with it."""
    for note in notes:
        say(f"note: {printable(note)}")
    if as_json:
        emit(record.to_json() | {"notes": notes})
        return
    fields(
        [
            ("dataset", record.ref),
            ("digest", record.digest),
            ("dvc", record.dvc_md5),
            ("images", f"{record.image_count:,}"),
            ("classes", len(record.classes)),
        ]
    )
    tell_balance(record)
    following(
        *next_steps, f"affinery task add {quote(record.name)} --dataset {quote(record.name)} --backbone NAME"
    )


def tell_balance(record: DatasetRecord) -> None:
    """How many images each class has."""
    most = max(record.class_counts)
    rows = [
        (name, f"{count:,}", f"{count / record.image_count:.1%}", "█" * max(1, round(24 * count / most)))
        for name, count in zip(record.classes, record.class_counts, strict=True)
    ]
    print()
    table(["class", "images", "share", ""], rows, "", numbers=("images", "share"))

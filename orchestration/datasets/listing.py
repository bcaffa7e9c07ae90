"""What a source holds, before an image of it was read: names, classes, captions, maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Found:
    """An image file. root, file: where it lies; name: what it is called in the source; condition: its map.

    line: where a list beside the images speaks of it, for errors; row: where it stands in a table.
    """

    root: Path
    file: str
    label: int
    name: str
    text: str | None = None
    condition: Found | None = None
    line: str | None = None
    row: str | None = None

    @property
    def path(self) -> Path:
        return self.root / self.file

    @property
    def extension(self) -> str:
        return self.file.rpartition(".")[2].lower()

    @property
    def place(self) -> str:
        """How an error names it. An image of a table has a name of ours, which tells nobody anything."""
        if self.row is not None:
            return self.row
        return self.name if self.line is None else f"{self.name} ({self.line})"


@dataclass(frozen=True)
class Listing:
    """The images of a source, class by class. licence, source: what a pack says of itself."""

    classes: tuple[str, ...]
    found: list[Found]
    notes: list[str]
    licence: str | None = None
    source: str | None = None

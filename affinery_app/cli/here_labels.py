"""What things are called and what is said about them, in a workspace on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from registry.records import AliasRecord, NoteRecord, RenamingRecord


class Labels:
    """One transaction a verb."""

    space: Workspace

    def aliases(self, task: str | None) -> list[AliasRecord]:
        from registry import aliases

        with self.space.sessions.read() as session:
            return aliases.list_all(session, task=task)

    def point(self, name: str, ref: str, expect: str | None, require: Sequence[str]) -> AliasRecord:
        """Have the alias mean this version, if it means what is expected and the version holds the rest."""
        from registry import aliases, metrics

        required = [metrics.requirement(text) for text in require]
        with self.space.sessions.begin() as session:
            return aliases.point(session, name, ref, expect=expect, require=required)

    def alias_moves(self, ref: str) -> list[AliasRecord]:
        """Of task@alias, the latest first."""
        from registry import aliases

        with self.space.sessions.read() as session:
            return aliases.history(session, ref)

    def remove_alias(self, ref: str, expect: str | None) -> AliasRecord:
        from registry import aliases

        with self.space.sessions.begin() as session:
            return aliases.remove(session, ref, expect=expect)

    def tag(self, ref: str, given: Mapping[str, str], away: Sequence[str]) -> tuple[str, dict[str, str]]:
        """Take tags away, and set those that are given. → what it is, and all that it has now"""
        from registry import tags

        with self.space.sessions.begin() if given or away else self.space.sessions.read() as session:
            node = tags.subject(session, ref, "tag")
            if away:
                tags.remove(session, node.full_ref, away)
            if given:
                tags.put(session, node.full_ref, given)
            return node.full_ref, tags.of(session, node.node_id)

    def note(self, ref: str, text: str | None, remove: bool) -> NoteRecord:
        """Write it, take it away, or read it."""
        from registry import notes

        with (
            self.space.sessions.begin()
            if remove or text is not None
            else self.space.sessions.read() as session
        ):
            if remove:
                return notes.remove(session, ref)
            return notes.read(session, ref) if text is None else notes.write(session, ref, text)

    def rename(self, ref: str, name: str) -> RenamingRecord:
        from registry import renaming

        with self.space.sessions.begin() as session:
            return renaming.rename(session, ref, name)

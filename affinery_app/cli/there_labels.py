"""What things are called and what is said about them, asked of a service: the verbs of `here_labels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from affinery.errors import ConfigInvalid
from affinery_app.cli.told import record_of

if TYPE_CHECKING:
    from affinery_app.client import Client
    from registry.records import AliasRecord, NoteRecord, RenamingRecord


class Labels:
    """A request a verb, or a few."""

    client: Client

    def aliases(self, task: str | None) -> list[AliasRecord]:
        from registry.records import AliasRecord

        return [record_of(AliasRecord, each) for each in self.client.aliases.list(task or "")]

    def point(self, name: str, ref: str, expect: str | None, require: Sequence[str]) -> AliasRecord:
        from registry.records import AliasRecord

        _check_expected(expect)
        meant = self.client.adapters.get(ref)
        told = self.client.aliases.set(f"{meant['name']}@{name}", meant["ref"], require)
        return record_of(AliasRecord, told)

    def alias_moves(self, ref: str) -> list[AliasRecord]:
        from registry.records import AliasRecord

        return [record_of(AliasRecord, each) for each in self.client.aliases.history(ref)]

    def remove_alias(self, ref: str, expect: str | None) -> AliasRecord:
        from registry.records import AliasRecord

        _check_expected(expect)
        return record_of(AliasRecord, self.client.aliases.remove(ref))

    def tag(self, ref: str, given: Mapping[str, str], away: Sequence[str]) -> tuple[str, dict[str, str]]:
        from registry.errors import NotFound

        held = self.client.tags.get(ref)
        for key in away:
            if key not in held:
                raise NotFound("tag", key, sorted(held))
        if given or away:
            held = self.client.tags.set(ref, {**dict.fromkeys(away), **given})
        return self.client.notes.get(ref)["ref"], held

    def note(self, ref: str, text: str | None, remove: bool) -> NoteRecord:
        from registry.records import NoteRecord

        if remove:
            return record_of(NoteRecord, self.client.notes.remove(ref))
        told = self.client.notes.get(ref) if text is None else self.client.notes.write(ref, text)
        return record_of(NoteRecord, told)

    def rename(self, ref: str, name: str) -> RenamingRecord:
        from registry.records import RenamingRecord

        return record_of(RenamingRecord, self.client.names.rename(ref, name))


def _check_expected(expect: str | None) -> None:
    if expect is not None:
        raise ConfigInvalid("--expect", "a service compares ETags (If-Match); it is asked in a workspace.")

"""What things are called and what is said about them, asked of a service: the verbs of `here_labels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from affinery_app.cli.told import Json, record_of
from affinery_app.client.errors import ServiceRefused

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
        from registry import names
        from registry.records import AliasRecord

        name = names.checked_alias(name)
        meant = self.client.adapters.get(ref)
        alias = f"{meant['name']}@{name}"
        seen: str | None = "*"
        if expect is not None:
            now = self._now(alias)
            self._compare(alias, now, expect)
            seen = None if now is None else now["etag"]
        return record_of(AliasRecord, self.client.aliases.set(alias, meant["ref"], require, seen))

    def alias_moves(self, ref: str) -> list[AliasRecord]:
        from registry.records import AliasRecord

        return [record_of(AliasRecord, each) for each in self.client.aliases.history(ref)]

    def remove_alias(self, ref: str, expect: str | None) -> AliasRecord:
        from registry.records import AliasRecord

        if expect is None:
            return record_of(AliasRecord, self.client.aliases.remove(ref))
        now = self.client.aliases.get(ref)
        self._compare(now["ref"], now, expect)
        return record_of(AliasRecord, self.client.aliases.remove(ref, now["etag"]))

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

    def _now(self, alias: str) -> Json | None:
        """What an alias means; None where that is nothing."""
        try:
            return self.client.aliases.get(alias)
        except ServiceRefused as refused:
            if refused.status == 404:
                return None
            raise

    def _compare(self, alias: str, now: Json | None, expect: str) -> None:
        """Raises AliasMoved where it means something else than is expected."""
        from registry.aliases import NOTHING
        from registry.errors import AliasMoved

        wanted = None
        if expect != NOTHING:
            ref = f"{alias.partition('@')[0]}@{expect}" if expect.isdecimal() else expect
            wanted = self.client.adapters.get(ref)["node_id"]
        if wanted != (None if now is None else now["adapter_id"]):
            raise AliasMoved(alias, expect, NOTHING if now is None else now["adapter"])

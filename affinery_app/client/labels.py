"""What people say about a thing, and what they call it: tags, notes, names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from affinery_app.client.nouns import Place

Json = dict[str, Any]


class Tags(Place):
    PLACE = "/v1/tags"

    def get(self, ref: str) -> dict[str, str]:
        """All tags of a backbone, dataset, task, adapter, composition or export."""
        return self._ask("GET", ref)

    def set(self, ref: str, tags: Mapping[str, str | None]) -> dict[str, str]:
        """Set these, and take those away that are None. → all that it has now"""
        return self._ask("PATCH", ref, body=dict(tags))


class Notes(Place):
    PLACE = "/v1/notes"

    def get(self, ref: str) -> Json:
        """What is said about a thing, under `text`; None where nothing is."""
        return self._ask("GET", ref)

    def write(self, ref: str, text: str) -> Json:
        """Say this about it, in place of what was said."""
        return self._ask("PUT", ref, body={"text": text})

    def remove(self, ref: str) -> Json:
        """Say nothing about it any more."""
        return self._ask("DELETE", ref)


class Names(Place):
    PLACE = "/v1/renamings"

    def history(self, ref: str) -> Iterator[Json]:
        """How what is called so (task:digits) came by its name, the first change first."""
        return iter(self._ask("GET", ref)["items"])

    def rename(self, ref: str, name: str) -> Json:
        """Call a backbone, dataset, task or composition otherwise, in all its versions."""
        return self._ask("POST", body={"of": ref, "name": name})

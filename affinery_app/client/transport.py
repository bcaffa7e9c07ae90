"""How a request reaches the application, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

PIECE_BYTES = 1 << 20


@dataclass
class Reply:
    """An answer; its body is read once, in pieces. close: lets go of what is not read."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]
    close: Callable[[], None]

    def read(self) -> bytes:
        """The whole body."""
        try:
            return b"".join(self.pieces)
        finally:
            self.close()

    def json(self) -> Any:
        """The body as JSON; None where there is none."""
        content = self.read()
        return json.loads(content) if content else None


class Transport(Protocol):
    """Carries requests. Raises ServiceUnreachable."""

    address: str

    def send(self, method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes] = ()) -> Reply:
        """path: with its query. body: its pieces; Content-Length is among the headers where there are any."""

    def close(self) -> None:
        """Let go of what is held."""

"""A service elsewhere, over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from affinery.errors import ConfigInvalid
from affinery_app.client.errors import ServiceUnreachable
from affinery_app.client.transport import PIECE_BYTES, Reply

PATIENCE_SECONDS = 120.0  # a stream says something every fifteen


class Remote:
    """A connection a request: nothing has to be kept alive, and threads share nothing."""

    def __init__(self, address: str, token: str | None) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigInvalid("Client", f"{address!r} is no address; write http://host:port.")
        self.address = address.rstrip("/")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port, self._below = parts.hostname, parts.port, parts.path.rstrip("/")
        self._shown = {} if token is None else {"Authorization": f"Bearer {token}"}

    def send(self, method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes] = ()) -> Reply:
        connection = self._connection(self._host, self._port, timeout=PATIENCE_SECONDS)
        given = dict(headers) | self._shown
        try:
            connection.request(method, self._below + path, body if "Content-Length" in given else None, given)
            answer = connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            raise ServiceUnreachable(self.address, str(error) or type(error).__name__) from error
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, told, self._pieces(answer), connection.close)

    def _pieces(self, answer: HTTPResponse) -> Iterator[bytes]:
        try:
            while piece := answer.read1(PIECE_BYTES):
                yield piece
        except (OSError, HTTPException) as error:
            raise ServiceUnreachable(self.address, f"it broke off ({error})") from error
        if answer.length:
            raise ServiceUnreachable(self.address, f"it broke off {answer.length:,} bytes before the end")

    def close(self) -> None:
        """Nothing is held."""

"""One message to one receiver: signed, within limits, and to no address that is not the whole world's.

A name is resolved once, every address that it has is looked at, and the connection goes to one of these very
addresses: what the name means a moment later counts for nothing. Redirects are not followed, no proxy of the
environment is asked, and of an answer only its head is read.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from affinery import __version__
from registry.errors import RecordInvalid
from registry.webhooks import PREFIX, checked_url

DEADLINE_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 3600.0
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
_RELAYS = ipaddress.ip_network("192.88.99.0/24")
_LATE = "it did not answer in time"
Address = tuple[int, tuple[str, int] | tuple[str, int, int, int]]


@dataclass(frozen=True)
class Outcome:
    """What became of a message. status: as it was answered. wait_seconds: as the receiver asked for."""

    status: int | None
    reason: str | None = None
    wait_seconds: float = 0.0

    @property
    def delivered(self) -> bool:
        return self.reason is None


class _Refused(Exception):
    """The receiver is not to be reached. Args: reason."""


def signed(secret: str, message: str, timestamp: int, body: bytes) -> Mapping[str, str]:
    """The three headers of Standard Webhooks: an HMAC-SHA256 of id, time and body."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    digest = hmac.digest(key, f"{message}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def post(url: str, body: bytes, headers: Mapping[str, str], allowed: frozenset[str]) -> Outcome:
    """Send it. allowed: names whose addresses are not looked at."""
    until = time.monotonic() + DEADLINE_SECONDS
    parts = urlsplit(url)
    host, secure = str(parts.hostname), parts.scheme == "https"
    try:
        found = resolved(host, parts.port or (443 if secure else 80), allowed)
        if time.monotonic() >= until:
            return Outcome(None, f"its name was not resolved within {DEADLINE_SECONDS:g} s")
        connection = _Checked(host, parts.port, found[0], secure, until)
    except _Refused as error:
        return Outcome(None, str(error))
    except OSError as error:
        return Outcome(None, f"its name cannot be resolved: {error.strerror or error}")
    watch = threading.Timer(until - time.monotonic(), connection.cut)
    watch.daemon = True
    watch.start()
    try:
        place = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        told = {
            "Content-Type": "application/json",
            "User-Agent": f"Affinery/{__version__}",
            "Connection": "close",
        }
        connection.request("POST", place, body, {**told, **headers})
        answer = connection.getresponse()
        if connection.was_cut:  # in the middle of its head, which then looks as if it ended there
            return Outcome(None, _LATE)
        return _outcome(answer.status, answer.getheader("Retry-After", ""))
    except (OSError, HTTPException, ValueError) as error:
        if time.monotonic() >= until or isinstance(error, TimeoutError):
            return Outcome(None, _LATE)
        return Outcome(None, f"it cannot be spoken with: {_words(error)}")
    finally:
        watch.cancel()
        connection.close()


def resolved(host: str, port: int, allowed: frozenset[str]) -> list[Address]:
    """Where a name leads. Raises OSError where it leads nowhere, and what is refused."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    found: list[Address] = [(family, place) for family, _, _, _, place in entries]  # type: ignore[misc]
    if host.lower() not in allowed:
        for _, place in found:
            if not is_public(place[0]):
                raise _Refused(
                    f"{host} leads to {place[0]}, which is not an address of the public internet; who "
                    "administers the service allows a host by the setting webhook_hosts"
                )
    return found


def checked(url: str, allowed: frozenset[str]) -> str:
    """The address of a receiver. RecordInvalid where it is none, or leads now to where nothing is sent.

    Where a name leads is seen again each time that it is told; one that leads nowhere yet may do so by then.
    """
    parts = urlsplit(checked_url(url))
    with suppress(OSError):
        try:
            resolved(str(parts.hostname), parts.port or 80, allowed)
        except _Refused as error:
            raise RecordInvalid("The webhook's address", str(error)) from error
    return url


def is_public(address: str) -> bool:
    """Whether this address is one of the public internet: of one machine, and not wrapped in another."""
    place = ipaddress.ip_address(address)
    special = place.is_multicast or place.is_reserved or not place.is_global
    if isinstance(place, ipaddress.IPv6Address):
        return not (special or place.is_site_local or place in _SIX_TO_FOUR)
    return not (special or place in _RELAYS)


class _Checked(HTTPConnection):
    """A connection to exactly the address that was looked at, whatever its name means by then."""

    def __init__(self, host: str, port: int | None, place: Address, secure: bool, until: float) -> None:
        super().__init__(f"[{host}]" if ":" in host else host, port or (443 if secure else 80))
        self.default_port = 443 if secure else 80  # which is not said in the header Host
        self._place, self._name, self._secure, self._until = place, host, secure, until
        self.was_cut = False

    def connect(self) -> None:
        """Raises OSError."""
        family, place = self._place
        self.sock = made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(max(0.01, self._until - time.monotonic()))
        made.connect(place)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(made, server_hostname=self._name)
        if self.was_cut:
            raise TimeoutError

    def cut(self) -> None:
        """The time is over: whoever waits for this connection waits no longer."""
        self.was_cut = True
        if self.sock is not None:
            try:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # below TLS, which would wait
            except OSError:
                return


def _outcome(status: int, wait: str) -> Outcome:
    if 200 <= status < 300:
        return Outcome(status)
    seconds = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 8 else 0.0
    if 300 <= status < 400:
        return Outcome(status, f"it answered {status}, and redirects are not followed")
    return Outcome(status, f"it answered {status}", min(seconds, LONGEST_WAIT_SECONDS))


def _words(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:300]

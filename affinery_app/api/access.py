"""Who may come in: whoever shows the token, of which only the digest is held."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from affinery_app.api.errors import TokenInvalid
from registry.digests import is_digest

SHORTEST = 16


@dataclass(frozen=True)
class Token:
    """A bearer token by the SHA-256 of its characters."""

    digest: str

    @classmethod
    def of(cls, secret: str) -> Token:
        """Raises TokenInvalid where it could be guessed."""
        if len(secret) < SHORTEST or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise TokenInvalid(f"it needs {SHORTEST} visible ASCII characters or more")
        return cls(hashlib.sha256(secret.encode()).hexdigest())

    @classmethod
    def known_by(cls, digest: str) -> Token:
        """The token of this digest. Raises TokenInvalid."""
        if not is_digest(digest):
            raise TokenInvalid("token_sha256 is not a SHA-256 of 64 lower-case hexadecimal digits")
        return cls(digest)

    def admits(self, authorization: bytes) -> bool:
        """Whether this Authorization header shows the token; the answer takes as long for any wrong one."""
        scheme, _, shown = authorization.partition(b" ")
        found = hashlib.sha256(shown.strip()).hexdigest()
        return hmac.compare_digest(found, self.digest) and scheme.lower() == b"bearer"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens here."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"

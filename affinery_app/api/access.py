"""Who may come in, and as whom: by a token of the registry, by a browser's session, or as this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from dataclasses import dataclass, replace
from datetime import datetime
from http.cookies import CookieError, SimpleCookie
from typing import Literal, Protocol

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from affinery_app.api.errors import NotGranted, TokenInvalid
from registry import tasks, tokens
from registry.errors import NotFound, Renamed
from registry.session import Sessions
from registry.tokens import SCOPES, TokenRecord

SHORTEST = 16
COOKIE = "affinery_session"
OWN = "AFFINERY_TOKEN"
LOOK_SECONDS = 2.0  # how long it may take until the first token closes a service that stood open


@dataclass(frozen=True)
class Who:
    """Somebody who came in. tasks: those that they may change; None for all.

    csrf: what every change of a browser's session must carry, in X-Affinery-CSRF or as a form's first field.
    """

    name: str
    scope: str
    via: Literal["token", "session", "loopback", "process"]
    address: str = ""
    tasks: tuple[str, ...] | None = None
    csrf: str = ""
    key: str = ""
    digest: str = ""
    expires_at: datetime | None = None

    def may(self, scope: str) -> bool:
        """Whether this scope is theirs."""
        return SCOPES.index(scope) <= SCOPES.index(self.scope)

    def check_tasks(self, session: Session, wanted: object) -> None:
        """Raises NotGranted where one of these tasks' names is none that they may change."""
        if self.tasks is not None:
            granted = {_called_now(session, name) for name in self.tasks}
            names = [wanted] if isinstance(wanted, str) else list(wanted)  # type: ignore[call-overload]
            others = sorted({_called_now(session, name) for name in names} - granted)
            if others or not names:
                raise NotGranted(self.name, ", ".join(others) or "no task", ", ".join(sorted(granted)))


HERE = Who("this machine", "admin", "loopback", "127.0.0.1")


class Door(Protocol):
    """What tells who comes."""

    async def is_open(self) -> bool:
        """Whether whoever is on this machine may come in without showing anything."""

    async def admit(self, headers: Headers) -> Who | None:
        """Who shows something that is good; None where nobody does."""


@dataclass(frozen=True)
class Token:
    """One bearer token by the SHA-256 of its characters."""

    digest: str

    @classmethod
    def of(cls, secret: str) -> Token:
        """Raises TokenInvalid where it could be guessed."""
        if len(secret) < SHORTEST or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise TokenInvalid(f"it needs {SHORTEST} visible ASCII characters or more")
        return cls(hashlib.sha256(secret.encode()).hexdigest())

    def admits(self, secret: str) -> bool:
        """Whether this is the secret; the answer takes as long for any wrong one."""
        return hmac.compare_digest(tokens.digest(secret), self.digest)


@dataclass(frozen=True)
class OneToken:
    """A door that one token opens; without one, it is open to this machine."""

    token: Token | None

    async def is_open(self) -> bool:
        return self.token is None

    async def admit(self, headers: Headers) -> Who | None:
        if self.token is not None and self.token.admits(bearer(headers)):
            return Who(OWN, "admin", "token", key=OWN, digest=self.token.digest)
        return None


class Registered:
    """A door that the registry's tokens open, and one of the environment, which may everything.

    Where there is no token at all, it stands open to this machine, until there is one; it never opens again.
    """

    def __init__(self, sessions: Sessions, own: Token | None, *, loopback: bool) -> None:
        self.sessions = sessions
        self.own = own
        self._open = own is None and loopback and not self._any_live()
        self._looked = float("-inf")
        self._used: dict[str, float] = {}

    @property
    def stands_open(self) -> bool:
        """Whether there was no token when it was last looked."""
        return self._open

    async def is_open(self) -> bool:
        if self._open and time.monotonic() - self._looked > LOOK_SECONDS:
            self._open = not await run_in_threadpool(self._any_live)
            self._looked = time.monotonic()
        return self._open

    async def admit(self, headers: Headers) -> Who | None:
        secret, cookie = bearer(headers), cookie_of(headers)
        if not secret and not cookie:
            return None
        return await run_in_threadpool(self._admit, secret, cookie)

    def shown(self, secret: str) -> Who | None:
        """Who shows this token."""
        if self.own is not None and self.own.admits(secret):
            return Who(OWN, "admin", "token", key=OWN, digest=self.own.digest)
        with self.sessions.read() as session:
            return _as_token(tokens.shown(session, secret))

    def is_due(self, who: Who) -> bool:
        """Whether that a token is used should be remembered again."""
        now, seconds = time.monotonic(), tokens.USED.total_seconds()
        if who.key == OWN or now - self._used.get(who.key, float("-inf")) < seconds:
            return False
        self._used[who.key] = now
        return True

    def remember(self, who: Who) -> None:
        """That a token is used."""
        with self.sessions.begin() as session:
            tokens.used(session, who.key)

    def _any_live(self) -> bool:
        with self.sessions.read() as session:
            return tokens.any_live(session)

    def _admit(self, secret: str, cookie: str) -> Who | None:
        if secret:  # whoever shows a token means it: a cookie beside it counts for nothing
            return self.shown(secret)
        with self.sessions.read() as session:
            found = tokens.of_session(session, cookie)
        if found is None:
            return None
        digest, record = found
        csrf = csrf_of(cookie)
        if self.own is not None and hmac.compare_digest(digest, self.own.digest):
            return Who(OWN, "admin", "session", csrf=csrf, key=OWN, digest=digest)
        who = _as_token(record)
        return None if who is None else replace(who, via="session", csrf=csrf)


def _as_token(record: TokenRecord | None) -> Who | None:
    if record is None:
        return None
    return Who(
        record.name,
        record.scope,
        "token",
        tasks=record.tasks,
        key=record.id,
        digest=record.digest,
        expires_at=record.expires_at,
    )


def bearer(headers: Headers) -> str:
    """The token in the Authorization header; "" where there is none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def cookie_of(headers: Headers) -> str:
    """The session in the Cookie header; "" where there is none."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value[:200] if found is not None else ""


def csrf_of(cookie: str) -> str:
    """What a page of this session puts into its forms: only who has the cookie can know it."""
    return hashlib.sha256(b"csrf of " + cookie.encode()).hexdigest()[:32]


def _called_now(session: Session, name: str) -> str:
    """What the task of this name is called now; the name itself where there is none yet."""
    try:
        return tasks.get(session, name).name
    except Renamed as changed:
        return str(changed.args[2])
    except NotFound:
        return name


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens here."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"

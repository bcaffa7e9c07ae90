"""Who asked for what is written, where it was asked for from outside: an event in the same transaction.

`with asked_by(Asker(…)): …` around a request; the first transaction that it commits tells of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

EVENT = "request.made"


@dataclass
class Asker:
    """Who it is (a token's name), how that is known, from which address, and what was asked.

    told: whether a transaction has told of it.
    """

    by: str
    via: str
    address: str
    did: str
    told: bool = False


_ASKER: ContextVar[Asker | None] = ContextVar("affinery_asker", default=None)


@contextmanager
def asked_by(asker: Asker) -> Iterator[None]:
    """What is written within was asked for by this one."""
    before = _ASKER.set(asker)
    try:
        yield
    finally:
        _ASKER.reset(before)


@contextmanager
def noted() -> Iterator[Callable[[Session], None]]:
    """Gives what notes the asker, if any, in a transaction that is about to end well."""
    asker = _ASKER.get()
    wanted = asker is not None and not asker.told

    def note(session: Session) -> None:
        if asker is not None and wanted:
            from registry import events

            told = {"by": asker.by, "via": asker.via, "from": asker.address, "did": asker.did}
            events.append(session, EVENT, None, told)

    yield note
    if asker is not None:
        asker.told = True

"""Webhooks are told of events: each event becomes a row a webhook, and the rows are worked off in order.

One at a time tells a webhook: who holds its lease. What was sent and not written down, because the process
was killed between, is sent again by the next: a receiver may be told twice, and knows it by the `webhook-id`.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from affinery.errors import AffineryError
from orchestration.queue import clock
from orchestration.webhooks_posting import Outcome, post, signed
from registry.models import Event, Webhook, WebhookDelivery
from registry.records import EventRecord
from registry.session import Sessions
from registry.webhooks import TESTED

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
LEASE_SECONDS = 60.0
TURN_SECONDS = 20.0  # after which a webhook with much to hear lets others have their turn
AT_ONCE = 4
TRIES = 12
RETRY_SECONDS = 5.0
LONGEST_DELAY_SECONDS = 3600.0
LONGEST_SECONDS = 3 * 24 * 3600.0  # after which what could not be told is given up, however few the tries
KEPT_SECONDS = 7 * 24 * 3600.0
SWEEP_SECONDS = 3600.0
STEP = 5_000
# On PostgreSQL a number that is given early may be committed late: so far back is looked again.
LOOK_BACK = {"postgresql": 5_000}
LATE_SECONDS = 60.0


@dataclass(frozen=True)
class Told:
    """A webhook whose lease is held, until it is let go or runs out."""

    id: str
    url: str
    secret: str
    owner: str


def spread(session: Session) -> bool:
    """Make rows of what happened since this was last done. → whether there is more"""
    newest = session.scalar(select(func.max(Event.id))) or 0
    back = LOOK_BACK.get(session.get_bind().dialect.name, 0)
    more = False
    for hook in session.scalars(select(Webhook).order_by(Webhook.id).with_for_update()):
        upto = min(newest, hook.seen + STEP)
        there = exists().where(WebhookDelivery.webhook_id == hook.id, WebhookDelivery.event_id == Event.id)
        wanted = select(literal(hook.id), Event.id, literal("waiting"), literal(0), clock.now()).where(
            Event.id > max(hook.since, hook.seen - back),
            Event.id <= upto,
            Event.kind != TESTED,  # told to the one that it is about
            _of_kinds(hook.kinds),
            ~there,
        )
        columns = ["webhook_id", "event_id", "state", "tries", "created_at"]
        session.execute(insert(WebhookDelivery.rows()).from_select(columns, wanted, include_defaults=False))
        hook.seen = upto
        more = more or upto < newest
    return more


def sweep(session: Session) -> None:
    """Forget what was told, or given up, long ago; not what spread may look at again, and make anew."""
    back = LOOK_BACK.get(session.get_bind().dialect.name, 0)
    for hook_id, seen in session.execute(select(Webhook.id, Webhook.seen)).all():
        session.execute(
            delete(WebhookDelivery)
            .where(
                WebhookDelivery.webhook_id == hook_id,
                WebhookDelivery.state != "waiting",
                WebhookDelivery.event_id <= seen - back,
                WebhookDelivery.created_at <= clock.later(-KEPT_SECONDS),
            )
            .execution_options(synchronize_session=False)
        )


def claim(session: Session, owner: str, lease_seconds: float = LEASE_SECONDS) -> Told | None:
    """Hold the webhook that has waited longest for its turn; None where none is due."""
    waiting = exists().where(WebhookDelivery.webhook_id == Webhook.id, WebhookDelivery.state == "waiting")
    free = or_(Webhook.lease_expires_at.is_(None), Webhook.lease_expires_at <= clock.now())
    found = session.scalar(
        select(Webhook)
        .where(Webhook.due_at <= clock.now(), free, waiting)
        .order_by(Webhook.due_at, Webhook.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if found is None:
        return None
    _hold(session, found.id, lease_owner=owner, lease_expires_at=clock.later(lease_seconds))
    return Told(found.id, found.url, found.secret, owner)


def following(session: Session, told: Told) -> EventRecord | None:
    """What it is to be told next; None where nothing is, or its lease is another's."""
    mine = exists().where(
        Webhook.id == told.id, Webhook.lease_owner == told.owner, Webhook.lease_expires_at > clock.now()
    )
    row = session.scalar(
        select(Event)
        .join(WebhookDelivery, WebhookDelivery.event_id == Event.id)
        .where(WebhookDelivery.webhook_id == told.id, WebhookDelivery.state == "waiting", mine)
        .order_by(Event.id)
        .limit(1)
    )
    if row is None:
        return None
    return EventRecord(id=row.id, at=row.at, kind=row.kind, subject=row.subject, payload=row.payload)


def write_down(session: Session, told: Told, event_id: int, outcome: Outcome) -> bool:
    """What became of it. → whether the webhook may be told more now

    Nothing is written where the lease is another's by now, who sends it again.
    """
    hook = session.scalar(
        select(Webhook).where(Webhook.id == told.id, Webhook.lease_owner == told.owner).with_for_update()
    )
    row = session.get(WebhookDelivery, (told.id, event_id))
    if hook is None or row is None or row.state != "waiting":
        return False
    tries = row.tries + 1
    old = WebhookDelivery.created_at <= clock.later(-LONGEST_SECONDS)
    over = tries >= TRIES or bool(session.scalar(select(exists().where(_this(told, event_id), old))))
    state = "delivered" if outcome.delivered else "given-up" if over else "waiting"
    session.execute(
        update(WebhookDelivery)
        .where(_this(told, event_id))
        .values(state=state, tries=tries, status=outcome.status, reason=outcome.reason, tried_at=clock.now())
        .execution_options(synchronize_session=False)
    )
    if outcome.delivered:
        _hold(session, told.id, failures=0, lease_expires_at=clock.later(LEASE_SECONDS))
        return True
    wait = max(delay(hook.failures), outcome.wait_seconds)
    _hold(session, told.id, failures=hook.failures + 1, due_at=clock.later(wait))
    return False


def let_go(session: Session, told: Told) -> None:
    """Another may tell it from now on."""
    session.execute(
        update(Webhook)
        .where(Webhook.id == told.id, Webhook.lease_owner == told.owner)
        .values(lease_owner=None, lease_expires_at=None)
        .execution_options(synchronize_session=False)
    )


def delay(failures: int) -> float:
    """Seconds until the next try: twice as long after each failure, and never for all alike."""
    longest = min(LONGEST_DELAY_SECONDS, RETRY_SECONDS * 2.0 ** min(failures, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def message(event: EventRecord) -> bytes:
    """What a receiver reads: its type, when it happened, and the event as `GET /v1/events` has it."""
    told = {"type": event.kind, "timestamp": event.at.isoformat(), "data": event.to_json()}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


class Sender:
    """Tells webhooks, in threads beside those that answer requests, until it is told to stop."""

    def __init__(self, sessions: Sessions, allowed: frozenset[str]) -> None:
        self.sessions = sessions
        self.allowed = allowed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="affinery webhooks", daemon=True)
        self._tellers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="affinery webhook")
        self._running: list[Future[None]] = []
        self._newest = -1
        self._late = 0.0
        self._sweep_at = float("-inf")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """What is being sent is sent to its end, which DEADLINE_SECONDS bound; then nothing more."""
        self._stopping.set()
        self._thread.join()
        self._tellers.shutdown(wait=True, cancel_futures=True)

    def look(self) -> None:
        """Once round: rows of what happened, and somebody to tell whoever is due."""
        if self._is_news():
            more = True
            while more and not self._stopping.is_set():
                with self.sessions.begin() as session:
                    more = spread(session)
                if time.monotonic() > self._sweep_at:
                    with self.sessions.begin() as session:
                        sweep(session)
                    self._sweep_at = time.monotonic() + SWEEP_SECONDS
        self._running = [each for each in self._running if not each.done()]
        while len(self._running) < AT_ONCE and not self._stopping.is_set() and self._is_due():
            with self.sessions.begin() as session:
                told = claim(session, uuid.uuid4().hex)
            if told is None:
                return
            self._running.append(self._tellers.submit(self._tell, told))

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a registry that is busy or away is asked again
                _complain("Webhooks wait", error)
            self._stopping.wait(LOOK_SECONDS)

    def _is_news(self) -> bool:
        """Whether rows are to be made: without a webhook nothing is written, and hardly anything read."""
        with self.sessions.read() as session:
            least = session.scalar(select(func.min(Webhook.seen)))
            if least is None:
                return False
            newest = session.scalar(select(func.max(Event.id))) or 0
            late = LOOK_BACK.get(session.get_bind().dialect.name, 0) > 0
        if newest != self._newest:
            self._newest, self._late = newest, time.monotonic() + LATE_SECONDS
        return least < newest or (late and time.monotonic() < self._late)

    def _is_due(self) -> bool:
        with self.sessions.read() as session:
            waiting = WebhookDelivery.webhook_id == Webhook.id, WebhookDelivery.state == "waiting"
            free = or_(Webhook.lease_expires_at.is_(None), Webhook.lease_expires_at <= clock.now())
            due = exists().where(Webhook.due_at <= clock.now(), free, exists().where(*waiting))
            return bool(session.scalar(select(due)))

    def _tell(self, told: Told) -> None:
        until = time.monotonic() + TURN_SECONDS
        try:
            while time.monotonic() < until and not self._stopping.is_set():
                with self.sessions.read() as session:
                    event = following(session, told)
                if event is None or not self._send(told, event):
                    break
            with self.sessions.begin() as session:
                let_go(session, told)
        except Exception as error:  # noqa: BLE001 - its lease runs out, and it is told again
            _complain(f"The webhook {told.id} was not told to the end", error)

    def _send(self, told: Told, event: EventRecord) -> bool:
        body = message(event)
        headers = signed(told.secret, f"evt_{told.id}_{event.id}", int(time.time()), body)
        outcome = post(told.url, body, headers, self.allowed)
        with self.sessions.begin() as session:
            return write_down(session, told, event.id, outcome)


def _of_kinds(kinds: list[str] | None) -> ColumnElement[bool]:
    if kinds is None:
        return literal(True)
    exact = [kind for kind in kinds if not kind.endswith(".*")]
    beginnings = [kind.removesuffix("*") for kind in kinds if kind.endswith(".*")]
    return or_(Event.kind.in_(exact), *(Event.kind.startswith(each, autoescape=True) for each in beginnings))


def _this(told: Told, event_id: int) -> ColumnElement[bool]:
    return (WebhookDelivery.webhook_id == told.id) & (WebhookDelivery.event_id == event_id)


def _hold(session: Session, webhook_id: str, **values: Any) -> None:
    session.execute(
        update(Webhook)
        .where(Webhook.id == webhook_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def _complain(what: str, error: Exception) -> None:
    if isinstance(error, AffineryError):
        log.warning("%s: %s", what, error)
    else:
        log.exception(what, exc_info=error)

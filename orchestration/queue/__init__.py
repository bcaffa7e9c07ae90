"""The job queue, in the registry's database: what is accepted is done once, whatever dies.

A worker claims a job for the length of a lease and renews it by heartbeats. If the worker dies, the lease
runs out and another claims the job with a higher fence; a write that carries an old fence is refused, so a
worker that was only asleep cannot spoil what its successor did. Every function takes the caller's session
and never commits. Time is the database's.

    queued → running → done | dead | cancelled, with paused beside queued

| file | what |
|---|---|
| accepting | enqueue, enqueue_all: keys, needs, tasks that train together |
| claiming | claim, take: what fits a worker and the limits; priority, then age |
| holding | heartbeat and the ends of an attempt, all fenced |
| recovery | give_up: leases that ran out, jobs that can never be done |
| control | cancel, pause, resume, retry, prioritise |
| waiting | how a worker hears that there is work |
| limits | how much may run at once |
| schedules | trainings that come again |
| listing | get, page, list_all, attempts |
"""

from orchestration.queue.accepting import by_keys, enqueue, enqueue_all, lock_keys
from orchestration.queue.claiming import claim, take
from orchestration.queue.control import cancel, hold, pause, prioritise, resume, retry
from orchestration.queue.holding import (
    LEASE_SECONDS,
    cancelled,
    complete,
    fail,
    finish,
    heartbeat,
    paused,
    release,
)
from orchestration.queue.listing import attempts, by_ids, counts, get, list_all, page, unfinished
from orchestration.queue.recovery import give_up, owners_gone
from orchestration.queue.schedules import fire_due

MAX_ATTEMPTS = 5

__all__ = [
    "LEASE_SECONDS",
    "MAX_ATTEMPTS",
    "attempts",
    "by_ids",
    "by_keys",
    "cancel",
    "cancelled",
    "claim",
    "complete",
    "counts",
    "enqueue",
    "enqueue_all",
    "fail",
    "finish",
    "fire_due",
    "get",
    "give_up",
    "heartbeat",
    "hold",
    "list_all",
    "lock_keys",
    "owners_gone",
    "page",
    "pause",
    "paused",
    "prioritise",
    "release",
    "resume",
    "retry",
    "take",
    "unfinished",
]

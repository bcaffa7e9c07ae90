"""What of a job both databases can hold, numbers and keys; anything else is refused, with its name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from affinery.errors import ConfigInvalid
from orchestration.jobs import Order

LARGEST = 2**31 - 1
LARGEST_BYTES = 2**63 - 1
LONGEST_KEY = 200


def check_priority(priority: int) -> int:
    """Raises ConfigInvalid."""
    if not -LARGEST <= priority <= LARGEST:
        raise ConfigInvalid("priority", f"{priority} is not a whole number from {-LARGEST} to {LARGEST}.")
    return priority


def key_of(kind: str, names: Iterable[str]) -> str:
    """The key of what nobody gave one: the same names are the same job."""
    key = f"{kind}:{'+'.join(names)}"
    return key if len(key) <= LONGEST_KEY else f"{kind}:{hashlib.sha256(key.encode()).hexdigest()}"


def check(order: Order) -> None:
    """Raises ConfigInvalid."""
    check_priority(order.priority)
    for name, count in (("workers", order.workers), ("max_attempts", order.max_attempts)):
        if not 1 <= count <= LARGEST:
            raise ConfigInvalid(name, f"{count} is not a whole number from 1 to {LARGEST}.")
    for name, amount in (("cpus", order.cpus), ("gpus", order.gpus)):
        if amount is not None and not (amount >= 0 and math.isfinite(amount)):
            raise ConfigInvalid(name, f"{amount:g} is no amount.")
    if order.memory_bytes is not None and not 0 <= order.memory_bytes <= LARGEST_BYTES:
        raise ConfigInvalid("memory", f"{order.memory_bytes} bytes are no amount.")
    if order.key is not None and not 1 <= len(order.key) <= LONGEST_KEY:
        raise ConfigInvalid("key", f"has {len(order.key)} characters; from 1 to {LONGEST_KEY} are taken.")
    seconds = order.timeout_seconds
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigInvalid("timeout", f"{seconds:g} is no number of seconds.")

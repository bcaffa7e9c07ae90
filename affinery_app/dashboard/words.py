"""Times, amounts and figures as pages say them."""

from __future__ import annotations

from datetime import UTC, datetime

from registry.metrics import recognition
from registry.records import AdapterRecord

_UNITS = ((86_400 * 365, "year"), (86_400 * 30, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute"))


def ago(at: datetime, now: datetime | None = None) -> str:
    """How long ago something was, in one unit."""
    passed = ((now or datetime.now(UTC)) - at).total_seconds()
    for seconds, unit in _UNITS:
        if passed >= seconds:
            count = int(passed // seconds)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def moment(at: datetime) -> str:
    """An instant, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float | None) -> str:
    """A span of time in its two largest units."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


def plain(value: object) -> object:
    """A recorded value as people read it: a figure without its noise, a list without brackets."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(plain(each)) for each in value)
    return "–" if value is None else value


def recognised(adapter: AdapterRecord, words: str = "{}", otherwise: str = "–") -> str:
    """The share of its samples that are taken for what they are, where its training measured that."""
    share = recognition(adapter.metrics).share
    return otherwise if share is None else words.format(f"{share:.0%}")

"""Times as text outside of records: for programs and for people. What records hold is `audit.record.format_time`."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment: datetime) -> str:
    """For programs: UTC, with a fraction of the second only where there is one."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def to_the_minute(time: datetime | int) -> str:
    """For people; a number is of unix seconds, and may be any that was told."""
    return _in_utc(time, "%Y-%m-%d %H:%M UTC")


def to_the_second(time: datetime | int) -> str:
    """As `to_the_minute`."""
    return _in_utc(time, "%Y-%m-%d %H:%M:%S UTC")


def record_time_to_the_second(text: object) -> str:
    """Of a record's `time`, for a column that says UTC at its head. It may be no time at all: then as it stands."""
    return str(text or "").removesuffix("Z").replace("T", " ")[:19]


def _in_utc(time: datetime | int, form: str) -> str:
    try:
        return (datetime.fromtimestamp(time, UTC) if isinstance(time, int) else time.astimezone(UTC)).strftime(form)
    except (ValueError, OverflowError, OSError):
        return "an impossible time"

"""Points in time as people write them, turned into the form that records hold."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from gateway.cli.errors import REQUESTER, BadConfiguration

_AGO = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_moment(text: str, now: datetime, option: str) -> str:
    """`90m`, `7d` (ago), `2026-11-22`, `2026-11-22T21:42:21Z` → RFC 3339 UTC with microseconds.

    A time without zone is UTC, as the records are. Raises BadConfiguration that names the option.
    """
    try:
        ago = _AGO.fullmatch(text)
        moment = now - _duration(ago) if ago is not None else datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadConfiguration(
            f"{option}: {text!r} is no time",
            REQUESTER,
            "write 90m, 12h or 7d (ago), 2026-11-22 or 2026-11-22T21:42:21Z (UTC)",
        ) from None
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _duration(ago: re.Match[str]) -> timedelta:
    return timedelta(**{_UNITS[ago[2]]: int(ago[1])})

"""What an operator can say of every receiver, whatever its kind."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from audit.errors import QueryRefused
from audit.siem.cursor import is_sink_name
from audit.siem.document import Render
from audit.siem.selection import selection
from audit.siem.status import Terms

Text = Annotated[str, Meta(min_length=1, max_length=1024)]


class SinkTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What all receivers have.

    `name`: of its cursor and in records. `filter`: a query of the audit log; without one every entry is delivered.
    `redact`: fields that it does not get (docs/siem.md). `deadline_seconds` is for one batch; `degraded_seconds`: how
    long it may fail before that is recorded. `reconcile_hours`: between two reconciliations, 0 for none;
    `reconcile_days`: how far back, for a receiver that keeps less than the log does.
    """

    name: Text
    filter: Text | None = None
    redact: tuple[Text, ...] = ()
    batch_entries: Annotated[int, Meta(ge=1, le=5_000)] = 500
    batch_bytes: Annotated[int, Meta(ge=64 * 1024, le=16 * 1024 * 1024)] = 1024 * 1024
    deadline_seconds: Annotated[int, Meta(ge=1, le=300)] = 30
    longest_pause_seconds: Annotated[int, Meta(ge=1, le=3_600)] = 60
    degraded_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 60
    reconcile_hours: Annotated[int, Meta(ge=0, le=24 * 31)] = 24
    reconcile_days: Annotated[int, Meta(ge=1, le=36_500)] = 366

    @property
    def terms(self) -> Terms:
        return Terms(
            batch_entries=self.batch_entries,
            batch_bytes=self.batch_bytes,
            deadline_seconds=self.deadline_seconds,
            longest_pause_seconds=self.longest_pause_seconds,
            degraded_seconds=self.degraded_seconds,
        )

    def render(self, now: datetime) -> Render:
        """How it sees an entry. Raises ValueError, naming the key."""
        try:
            return selection(self.filter, self.redact, now)
        except QueryRefused as error:
            raise ValueError(f"filter: {error}") from error
        except ValueError as error:
            raise ValueError(f"redact: {error}") from error

    def check(self) -> None:
        """What types cannot say. Raises ValueError, naming the key."""
        if not is_sink_name(self.name):
            raise ValueError(f"name: {self.name!r} must be of lower-case letters, digits and hyphens, at most 63")
        self.render(datetime.now(UTC))


def require_https(url: str) -> None:
    """No plaintext, no password in a URL (which is logged), nothing behind the address. Raises ValueError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("url: is none") from None
    if parts.scheme != "https" or not parts.hostname or port == 0:
        raise ValueError("url: must be https://HOST[:PORT]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url: must not hold a password: it is told in logs")
    if parts.query or parts.fragment:
        raise ValueError("url: must not hold a query")

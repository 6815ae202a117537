"""What an operator says of each receiver: the tables `[[siem.sinks]]`, by `kind`, decoded and checked at start."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from audit.errors import QueryRefused
from audit.siem.cursor import is_sink_name
from audit.siem.document import Render
from audit.siem.selection import selection
from audit.siem.status import Terms

MAX_SINKS: Final = 16

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
    batch_bytes: Annotated[int, Meta(ge=64 * 1024, le=16 * 1024 * 1024)] = 4 * 1024 * 1024
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


class ElasticsearchTable(SinkTable, frozen=True, tag="elasticsearch"):
    """Either an API key (one line, file mode 0600) or a client certificate.

    `indices`: the beginning of their names; `lifecycle`: the cluster's policy that they follow. `trust_bundle`: PEM, by
    default what the system trusts.
    """

    url: Text
    api_key_file: Text | None = None
    certificate: Text | None = None
    private_key: Text | None = None
    trust_bundle: Text | None = None
    indices: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")] = "sealane-audit"
    lifecycle: Text | None = None

    def check(self) -> None:
        """See SinkTable."""
        super().check()
        require_https(self.url)
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate: needs `private_key`, and the other way round")
        if (self.api_key_file is None) == (self.certificate is None):
            raise ValueError("api_key_file: give it or a `certificate`, and not both")


# One more receiver: its table here, and how it is made in `receivers.py`.
AnySinkTable = ElasticsearchTable


class SiemTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All receivers of this gateway's log."""

    sinks: Annotated[tuple[AnySinkTable, ...], Meta(max_length=MAX_SINKS)] = ()

    def check(self) -> None:
        """Raises ValueError, naming sink and key."""
        names = [sink.name for sink in self.sinks]
        if len(set(names)) != len(names):
            raise ValueError("two sinks have the same name")
        for sink in self.sinks:
            try:
                sink.check()
            except ValueError as error:
                raise ValueError(f"{sink.name[:64]}: {error}") from error


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

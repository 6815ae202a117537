"""What an operator says of receivers that take lines: docs/siem-receivers.md."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from audit.siem.formats import Format
from gateway.siem.sink_table import SinkTable, Text, require_https

MessageBytes = Annotated[int, Meta(ge=4_096, le=256 * 1024)]


class LineTable(SinkTable, frozen=True, kw_only=True):
    """A receiver of lines in one of our formats. `entry` is the log's own, which a sink with `redact` must not get."""

    format: Format = Format.ENTRY

    def check(self) -> None:
        """See SinkTable."""
        super().check()
        if self.redact and self.format is Format.ENTRY:
            raise ValueError("format: `entry` holds all fields; choose another one where some are redacted")


class TlsTable(LineTable, frozen=True, kw_only=True):
    """`trust_bundle`: PEM, by default what the system trusts. Our certificate is for receivers that ask for one."""

    trust_bundle: Text | None = None
    certificate: Text | None = None
    private_key: Text | None = None

    def check(self) -> None:
        """See SinkTable."""
        super().check()
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate: needs `private_key`, and the other way round")


class SyslogTable(TlsTable, frozen=True, kw_only=True, tag="syslog"):
    """`address`: HOST:PORT. `server_name`: in its certificate, where that is not the host. `hostname`: ours, in each
    message; by default the log's. `resend_bytes` are sent again after a connection broke, `resend_entries` after a
    restart of the gateway.
    """

    address: Text
    server_name: Text | None = None
    hostname: Text | None = None
    max_message_bytes: MessageBytes = 8_192
    resend_bytes: Annotated[int, Meta(ge=0, le=64 * 1024 * 1024)] = 8 * 1024 * 1024
    resend_entries: Annotated[int, Meta(ge=0, le=100_000)] = 2_000


class RelpTable(TlsTable, frozen=True, kw_only=True, tag="relp"):
    """As for syslog. `window`: messages that may be unanswered."""

    address: Text
    server_name: Text | None = None
    hostname: Text | None = None
    max_message_bytes: MessageBytes = 8_192
    window: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class SplunkTable(TlsTable, frozen=True, kw_only=True, tag="splunk"):
    """`url`: of the HTTP Event Collector. `token_file`: one line, 0600."""

    url: Text
    token_file: Text
    index: Text | None = None
    hostname: Text | None = None
    max_message_bytes: MessageBytes = 10_000

    def check(self) -> None:
        """See SinkTable."""
        super().check()
        require_https(self.url)


class WebhookTable(TlsTable, frozen=True, kw_only=True, tag="webhook"):
    """`key_file`: `whsec_…` or `whsk_…`, one a line, 0600."""

    url: Text
    key_file: Text
    max_message_bytes: MessageBytes = 128 * 1024

    def check(self) -> None:
        """See SinkTable."""
        super().check()
        require_https(self.url)


class FileTable(LineTable, frozen=True, kw_only=True, tag="file"):
    """`path`: its folder must exist. A file is full at `rotate_bytes`; `keep` full ones are kept."""

    path: Text
    rotate_bytes: Annotated[int, Meta(ge=64 * 1024, le=2**40)] = 100 * 1024 * 1024
    keep: Annotated[int, Meta(ge=1, le=1_000)] = 10

"""From the table of a receiver of lines to its sink, and to the line that it gets of each entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import assert_never
from uuid import NAMESPACE_URL, uuid5

from audit.siem.document import Document
from audit.siem.formats import line_of
from audit.siem.formats.syslog import header, syslog_name
from audit.siem.https import HttpsPeer
from audit.siem.line_file import MAX_LINE_BYTES, LineFileSink
from audit.siem.peer import Peer, Trust
from audit.siem.relp import RelpSink
from audit.siem.secrets import read_secret, read_secret_line
from audit.siem.sink import Sink, SinkAway
from audit.siem.splunk import HecSettings, SplunkSink
from audit.siem.syslog import Resend, SyslogSink
from audit.siem.webhook import WebhookSettings, WebhookSink
from audit.siem.webhook_signature import parse_keys
from gateway.config import parse_address
from gateway.siem.line_tables import FileTable, RelpTable, SplunkTable, SyslogTable, TlsTable, WebhookTable

PathOf = Callable[[str], Path]
AnyLineTable = FileTable | RelpTable | SplunkTable | SyslogTable | WebhookTable


def make_line_sink(table: AnyLineTable, path_of: PathOf, origin: str) -> Sink:
    """A sink that has not connected yet. Certificates and secrets are read at each connection, and once now.

    Raises ValueError naming the key or file at fault, never with what is in it.
    """
    line = line_of(table.format)
    match table:
        case FileTable():
            return LineFileSink(table.name, path_of(table.path), line, table.rotate_bytes, table.keep)
        case SyslogTable():
            hostname = _hostname(table, origin)
            peer = _peer(table, path_of)
            resend = Resend(table.resend_bytes, table.resend_entries)
            return SyslogSink(table.name, peer, line, hostname, table.max_message_bytes, resend)
        case RelpTable():
            hostname = _hostname(table, origin)
            return RelpSink(table.name, _peer(table, path_of), line, hostname, table.max_message_bytes, table.window)
        case SplunkTable():
            _require(lambda: read_secret_line(path_of(table.token_file)))
            hec = HecSettings(
                token_file=path_of(table.token_file),
                channel=uuid5(NAMESPACE_URL, f"sealane:{origin}:{table.name}"),
                index=table.index,
                form=table.format,
                max_event_bytes=table.max_message_bytes,
            )
            return SplunkSink(table.name, _https(table, path_of), hec, line, _hostname(table, origin))
        case WebhookTable():
            _require(lambda: parse_keys(read_secret(path_of(table.key_file))))
            settings = WebhookSettings(
                key_file=path_of(table.key_file), form=table.format, max_entry_bytes=table.max_message_bytes
            )
            return WebhookSink(table.name, _https(table, path_of), settings, line)
        case _:
            assert_never(table)


def stored_line(table: AnyLineTable, origin: str) -> Callable[[Document], bytes]:
    """What the receiver of `table` stores of a document: the line, without the header that syslog puts before it."""
    line = line_of(table.format)
    match table:
        case FileTable():
            return lambda document: line(document, MAX_LINE_BYTES)
        case SyslogTable() | RelpTable():
            hostname, limit = _hostname(table, origin), table.max_message_bytes
            return lambda document: line(document, limit - len(header(document, hostname)))
        case SplunkTable() | WebhookTable():
            limit = table.max_message_bytes
            return lambda document: line(document, limit)
        case _:
            assert_never(table)


def _hostname(table: SyslogTable | RelpTable | SplunkTable, origin: str) -> str:
    return syslog_name(table.hostname or origin.partition("/")[0])


def _peer(table: SyslogTable | RelpTable, path_of: PathOf) -> Peer:
    try:
        address = parse_address(table.address)
    except ValueError as error:
        raise ValueError(f"address: {error}") from None
    if address.port == 0:
        raise ValueError("address: port 0 is none")
    trust = _trust(table, path_of)
    return Peer(host=address.host, port=address.port, trust=trust, server_name=table.server_name)


def _https(table: SplunkTable | WebhookTable, path_of: PathOf) -> HttpsPeer:
    return HttpsPeer(table.url, _trust(table, path_of))


def _trust(table: TlsTable, path_of: PathOf) -> Trust:
    trust = Trust(
        trust_bundle=None if table.trust_bundle is None else path_of(table.trust_bundle),
        certificate=None if table.certificate is None else path_of(table.certificate),
        private_key=None if table.private_key is None else path_of(table.private_key),
    )
    _require(trust.context)
    return trust


def _require(attempt: Callable[[], object]) -> None:
    """What would fail at the first connection fails at the start."""
    try:
        attempt()
    except SinkAway as away:
        raise ValueError(str(away)) from None

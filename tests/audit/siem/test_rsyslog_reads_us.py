"""RFC 5424 as rsyslog's parser understands it, and rsyslog's own file reconciled with the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from audit.siem.document import Document, document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.syslog import header, syslog_name
from audit.siem.peer import Peer, Trust
from audit.siem.reconcile_lines import LineSource, reconcile_lines
from audit.siem.relp import RelpSink
from audit.siem.syslog import SyslogSink
from tests.audit.samples import ORIGIN
from tests.audit.siem.certificates import CLIENT_NAME, TestAuthority
from tests.audit.siem.entries import log_entry
from tests.audit.siem.hostile import PIECES
from tests.audit.siem.rsyslog import SERVER_NAME, Rsyslog
from tests.audit.siem.sink_contract import delivered, until

pytestmark = pytest.mark.real
LIMIT = 60_000


@pytest.fixture
def rsyslog(tmp_path: Path) -> Iterator[Rsyslog]:
    server = Rsyslog(tmp_path, TestAuthority(tmp_path), with_parts=True)
    server.start()
    yield server
    server.kill()


def sink(server: Rsyslog, protocol: str, form: Format) -> SyslogSink | RelpSink:
    authority = server.authority
    client = authority.issue(CLIENT_NAME)
    trust = Trust(trust_bundle=authority.bundle, certificate=client.certificate, private_key=client.key)
    port = server.relp_port if protocol == "relp" else server.syslog_port
    peer = Peer(host="127.0.0.1", port=port, server_name=SERVER_NAME, trust=trust)
    kind = RelpSink if protocol == "relp" else SyslogSink
    return kind(protocol, peer, line_of(form), syslog_name("gw.example"), LIMIT)


HOSTILE = [log_entry(index, reason=piece, kind="migration.decision") for index, piece in enumerate(PIECES)]
HOSTILE.append(log_entry(len(PIECES), details={"n": "x" * 40_000}))


@pytest.mark.parametrize("protocol", ["syslog", "relp"])
@pytest.mark.parametrize("form", Format)
async def test_its_parser_gives_back_each_part_and_no_value_forges_a_message(
    rsyslog: Rsyslog, protocol: str, form: Format
) -> None:
    batch = [document_of(entry) for entry in HOSTILE]
    one = sink(rsyslog, protocol, form)
    assert await delivered(one, batch) == []
    await one.close()
    await until(lambda: rsyslog.parts.exists() and rsyslog.parts.read_bytes().count(b"\n") == len(batch))
    read = [msgspec.json.decode(line) for line in rsyslog.parts.read_bytes().splitlines()]
    assert len(read) == len(batch)
    for document, found in zip(batch, read, strict=True):
        event = document.body["event"]
        assert found["msg"].encode() == _line(document, form)
        assert found["structure"] == (
            f'[sealane@32473 id="{document.id}" sequence="{document.index}" hash="{event["hash"]}"]'
        )
        assert (found["pri"], found["hostname"], found["app"]) == ("110", "gw.example", "sealane")
        assert (found["msgid"], found["procid"], found["time"]) == (
            "migration.decision",
            "-",
            document.body["@timestamp"],
        )
    stored = ((str(number), line) for number, line in enumerate(rsyslog.lines()))
    entries = [entry.entry for entry in HOSTILE]
    source = LineSource(ORIGIN, len(entries), lambda a, b: entries[a:b], document_of, lambda each: _line(each, form))
    assert reconcile_lines(stored, source, 0, len(entries)).findings.agrees


def _line(document: Document, form: Format) -> bytes:
    return line_of(form)(document, LIMIT - len(header(document, "gw.example")))

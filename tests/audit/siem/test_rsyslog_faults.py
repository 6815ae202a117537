"""What rsyslog loses although all is well with us, and that reconciliation finds each entry of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from audit.siem.document import document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.syslog import header
from audit.siem.reconcile_lines import LineFindings, LineSource, reconcile_lines
from audit.siem.sink import SinkAway
from audit.siem.syslog import Resend
from tests.audit.samples import ORIGIN
from tests.audit.siem.entries import FakeLog
from tests.audit.siem.receivers import MAX_MESSAGE_BYTES, RsyslogReceiver
from tests.audit.siem.sink_contract import delivered, documents, shipper_of, until

pytestmark = pytest.mark.real
COUNT = 400


def reconciled(receiver: RsyslogReceiver, log: FakeLog) -> LineFindings:
    """What is in rsyslog's file, against the log."""
    make = line_of(Format.ENTRY)
    source = LineSource(
        ORIGIN,
        log.size,
        lambda start, end: log.entries[start:end],
        document_of,
        lambda each: make(each, MAX_MESSAGE_BYTES - len(header(each, "gw-1"))),
    )
    stored = ((f"text.log:{number}", line) for number, line in enumerate(receiver.server.lines(), 1))
    return reconcile_lines(stored, source, 0, log.size)


def limit_files(receiver: RsyslogReceiver, limit: str) -> None:
    subprocess.run(["prlimit", f"--fsize={limit}:unlimited", f"--pid={receiver.server.pid}"], timeout=10, check=True)


async def test_a_full_disk_loses_what_rsyslog_acknowledged_and_reconciliation_names_it(tmp_path: Path) -> None:
    """rsyslog 8.2302 answers 200 to RELP and reports `message lost` in its own log. No sender can see that."""
    receiver, log = RsyslogReceiver(tmp_path, "relp"), FakeLog(COUNT)
    try:
        sink = receiver.sink()
        await delivered(sink, documents(0, 100))
        limit_files(receiver, str(receiver.server.text.stat().st_size + 50_000))
        await delivered(sink, documents(100, 300))
        limit_files(receiver, "unlimited")
        await delivered(sink, documents(300, COUNT))
        found = reconciled(receiver, log).findings
        assert not found.agrees
        assert 100 < len(found.missing) < 200
        assert set(found.missing) < set(range(100, 310))  # the one behind a part of a line is lost with it
        again = [each for each in documents(0, COUNT) if each.index in set(found.missing)]
        await delivered(sink, again)
        await sink.close()
        assert not reconciled(receiver, log).findings.missing
    finally:
        receiver.close()


async def test_what_syslog_lost_unacknowledged_is_sent_again_after_the_break(tmp_path: Path) -> None:
    """A frozen rsyslog whose kernel takes all, killed before it read any: the worst case of RFC 5425."""
    receiver, log = RsyslogReceiver(tmp_path, "syslog"), FakeLog(COUNT)
    try:
        await _lose(receiver)
        assert reconciled(receiver, log).findings.missing == []
    finally:
        receiver.close()


async def test_what_was_lost_while_we_were_restarted_is_sent_again_at_the_start(tmp_path: Path) -> None:
    receiver, log = RsyslogReceiver(tmp_path, "syslog"), FakeLog(100)
    try:
        async with trio.open_nursery() as nursery:
            shipper = shipper_of(receiver, log, tmp_path)
            nursery.start_soon(shipper.run)
            await until(lambda: len(receiver.held()) == 100)
            receiver.server.freeze()
            log.grow(40)
            await until(lambda: shipper.status.position == 140)
            nursery.cancel_scope.cancel()
        receiver.kill()
        receiver.start()
        assert len(receiver.held()) == 100
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shipper_of(receiver, log, tmp_path).run)
            await until(lambda: reconciled(receiver, log).findings.missing == [])
            nursery.cancel_scope.cancel()
    finally:
        receiver.close()


async def test_without_resending_that_is_lost_and_reconciliation_names_it(tmp_path: Path) -> None:
    receiver, log = RsyslogReceiver(tmp_path, "syslog", resend=Resend(0, 0)), FakeLog(COUNT)
    try:
        await _lose(receiver)
        assert reconciled(receiver, log).findings.missing == list(range(100, 140))
    finally:
        receiver.close()


async def _lose(receiver: RsyslogReceiver) -> None:
    sink = receiver.sink()
    await delivered(sink, documents(0, 100))
    await until(lambda: len(receiver.held()) == 100)
    receiver.server.freeze()
    await delivered(sink, documents(100, 140))  # counted as delivered: TCP has acknowledged it
    receiver.kill()
    receiver.start()
    with trio.fail_after(30):
        while True:
            try:
                await sink.deliver(documents(140, COUNT))
                break
            except SinkAway:
                await trio.sleep(0.05)
    await sink.close()
    await until(lambda: receiver.held()[-1:] == [documents(COUNT - 1, COUNT)[0].id])

"""How fast the log reaches a real rsyslog: entries of the log, through the shipper, into rsyslog's file.

Each entry is decoded, made a document and a line of the default format, framed, encrypted, and stored by rsyslog with
direct queues: measured from the first read to the last line in the file. Syslog over TLS, and RELP with an
acknowledgement for each message.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import trio

from audit.siem.document import document_of
from audit.siem.formats import Format, line_of
from audit.siem.peer import Peer, Trust
from audit.siem.relp import RelpSink
from audit.siem.shipper import Shipper
from audit.siem.sink import Sink
from audit.siem.status import SinkEvent, Terms
from audit.siem.syslog import SyslogSink
from bench.harness import BenchError, Plan, tell
from bench.permit_latency import DISK
from certs.files import write_atomically
from tests.audit.samples import ORIGIN, entry
from tests.audit.siem.certificates import CLIENT_NAME, TestAuthority
from tests.audit.siem.rsyslog import SERVER_NAME, Rsyslog

ENTRIES = 100_000
QUICK_ENTRIES = 10_000
DISTINCT = 2_000  # entries that are signed; the log repeats them, under indices of their own
BATCH = 1_000
MAX_MESSAGE_BYTES = 64 * 1024
TIMEOUT_SECONDS = 300.0


def measure(plan: Plan) -> dict[str, float]:
    """Entries a second into rsyslog's file: `rsyslog_per_s` by syslog over TLS, `rsyslog_relp_per_s` by RELP."""
    entries = [entry(index) for index in range(DISTINCT)]
    size = QUICK_ENTRIES if plan.quick else ENTRIES
    rates: dict[str, list[float]] = {"rsyslog_per_s": [], "rsyslog_relp_per_s": []}
    for _ in range(plan.rounds_to_run):
        for name, found in rates.items():
            with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as folder:
                found.append(size / _seconds(Path(folder), name, Repeated(entries, size)))
            tell(f"{name}, round {len(found)} of {plan.rounds_to_run}: {found[-1]:,.0f}")
    return {name: statistics.median(found) for name, found in rates.items()} | {
        "rsyslog_entry_bytes": statistics.mean(map(len, entries))
    }


class Repeated:
    """A log in memory that gives the same entries over and over."""

    def __init__(self, entries: Sequence[bytes], size: int) -> None:
        self._entries = entries
        self.size = size

    @property
    def origin(self) -> str:
        return ORIGIN

    async def read(self, start: int, end: int) -> list[bytes]:
        return [self._entries[index % len(self._entries)] for index in range(start, end)]


def _seconds(folder: Path, name: str, log: Repeated) -> float:
    authority = TestAuthority(folder)
    server = Rsyslog(folder, authority)
    server.start()
    try:
        started = time.perf_counter()
        trio.run(_deliver, _sink(server, authority, name), folder, log, server.text)
        return time.perf_counter() - started
    finally:
        server.stop()


def _sink(server: Rsyslog, authority: TestAuthority, name: str) -> Sink:
    client = authority.issue(CLIENT_NAME)
    trust = Trust(trust_bundle=authority.bundle, certificate=client.certificate, private_key=client.key)
    kind, port = (RelpSink, server.relp_port) if "relp" in name else (SyslogSink, server.syslog_port)
    peer = Peer(host="127.0.0.1", port=port, server_name=SERVER_NAME, trust=trust)
    return kind("bench", peer, line_of(Format.ENTRY), "gateway", MAX_MESSAGE_BYTES)


async def _deliver(sink: Sink, folder: Path, log: Repeated, text: Path) -> None:
    terms = Terms(batch_entries=BATCH, batch_bytes=16 * 1024 * 1024)
    shipper = Shipper(sink, log, folder, write_atomically, _tell, terms, document_of)
    with trio.move_on_after(TIMEOUT_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shipper.run)
            lines = _Lines(text)
            for _ in count():
                await trio.sleep(0.02)
                if await trio.to_thread.run_sync(lines.count) >= log.size:
                    nursery.cancel_scope.cancel()
                    return
    raise BenchError(f"rsyslog has not stored {log.size} entries within {TIMEOUT_SECONDS:.0f} s")


class _Lines:
    """Counts the lines of a file that grows, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._count = 0

    def count(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._position)
                while chunk := file.read(1 << 20):
                    self._count += chunk.count(b"\n")
                    self._position += len(chunk)
        return self._count


async def _tell(event: SinkEvent) -> None:
    raise BenchError(f"{event.kind}: {event.details}")

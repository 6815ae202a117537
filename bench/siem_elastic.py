"""How fast the log reaches a real Elasticsearch, and how far behind it is while records keep coming.

Each entry is decoded, made an ECS document, sent in a bulk over TLS with an API key and acknowledged: measured from the
first read to the last acknowledgement, by the terms that a gateway has by default. Node and shipper share the machine.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from audit.siem.elastic import ElasticSink
from audit.siem.shipper import EntrySource, Shipper
from audit.siem.status import SinkEvent
from bench.harness import BenchError, Plan, tell
from bench.permit_latency import DISK
from bench.siem_rsyslog import DISTINCT, Repeated
from certs.files import write_atomically
from gateway.siem.tables import ElasticsearchTable
from tests.audit.samples import ORIGIN, entry
from tests.elasticsearch_node.process import ElasticsearchNode

ENTRIES = 60_000
QUICK_ENTRIES = 10_000
RATE = 500  # records a second
STEADY_SECONDS = 20
QUICK_STEADY_SECONDS = 4
TIMEOUT_SECONDS = 300.0
# As a server is run, and not as tests start it: with its optimising compiler, and requests of the usual size.
NODE_OPTIONS = ("-XX:+UseG1GC",)


def measure(plan: Plan) -> dict[str, float]:
    """`elastic_docs_per_s`; `siem_lag_p50_s` and the longest, `siem_lag_s`, at 500 records a second."""
    entries = [entry(index) for index in range(DISTINCT)]
    size = QUICK_ENTRIES if plan.quick else ENTRIES
    rates: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as folder,
        ElasticsearchNode(Path(folder), "1g", NODE_OPTIONS, "100mb") as node,
    ):
        for number in range(plan.rounds_to_run + 1):
            took = trio.run(_backlog, node, f"backlog{number}", Path(folder), Repeated(entries, size))
            tell(f"elastic, round {number} of {plan.rounds_to_run}: {size / took:,.0f} documents/s")
            if number:  # the first one warms the server up
                rates.append(size / took)
        lags = trio.run(_steady, node, "steady", Path(folder), Growing(entries), plan.quick)
    return {
        "elastic_docs_per_s": statistics.median(rates),
        "siem_lag_p50_s": statistics.median(lags),
        "siem_lag_s": max(lags),
        "elastic_entry_bytes": statistics.mean(map(len, entries)),
    }


class Growing:
    """A log that has `RATE` more entries each second, and knows when each came."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self._entries = entries
        self.came: list[float] = []

    @property
    def origin(self) -> str:
        return ORIGIN

    @property
    def size(self) -> int:
        return len(self.came)

    async def read(self, start: int, end: int) -> list[bytes]:
        return [self._entries[index % len(self._entries)] for index in range(start, end)]

    async def grow(self, seconds: float) -> None:
        """Twenty at a time, as group commits come."""
        started = trio.current_time()
        while (elapsed := trio.current_time() - started) < seconds:
            due = int(elapsed * RATE) - self.size
            self.came += [trio.current_time()] * due
            await trio.sleep(0.04)


async def _backlog(node: ElasticsearchNode, name: str, folder: Path, log: Repeated) -> float:
    started = trio.current_time()
    await _deliver(node, name, folder, log, lambda shipper: shipper.status.position >= log.size)
    return trio.current_time() - started


async def _steady(node: ElasticsearchNode, name: str, folder: Path, log: Growing, quick: bool) -> list[float]:
    """Seconds from commit to acknowledgement, of each entry."""
    lags: list[float] = []
    seconds = QUICK_STEADY_SECONDS if quick else STEADY_SECONDS

    def looked(shipper: Shipper) -> bool:
        now = trio.current_time()
        lags.extend(now - came for came in log.came[len(lags) : shipper.status.position])
        return len(lags) >= RATE * seconds * 0.9 and shipper.status.lag == 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.grow, seconds)
        await _deliver(node, name, folder, log, looked)
    return lags


async def _deliver(
    node: ElasticsearchNode, name: str, folder: Path, log: EntrySource, end: Callable[[Shipper], bool]
) -> None:
    _, key = await trio.to_thread.run_sync(node.make_api_key, name, f"{name}-*")
    sink = ElasticSink(name, node.keyed_client(key, seconds=60), name)
    terms = ElasticsearchTable(name=name, url=node.url).terms
    shipper = Shipper(sink, log, folder, write_atomically, _tell, terms)
    with trio.move_on_after(TIMEOUT_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shipper.run)
            while not end(shipper):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        return
    raise BenchError(f"Elasticsearch has not taken all within {TIMEOUT_SECONDS:.0f} s: {shipper.status.last_error}")


async def _tell(event: SinkEvent) -> None:
    raise BenchError(f"{event.kind}: {event.details}")

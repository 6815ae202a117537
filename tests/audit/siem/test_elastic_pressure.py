"""Elasticsearch with more to do than it has memory for: its own 429, by its own bound on what is written at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from audit.siem.elastic import ElasticSink
from audit.siem.shipper import Shipper
from audit.siem.status import SinkEvent, Terms
from certs.files import write_atomically
from tests.audit.siem.entries import FakeLog
from tests.elasticsearch_node.process import ElasticsearchNode

pytestmark = [pytest.mark.real, pytest.mark.whole]

# Some 32 entries pass at once, with which a delivery begins, and 400 never do.
PRESSURE = "cluster.routing.allocation.disk.threshold_enabled: false\nindexing_pressure.memory.limit: 300kb"
TERMS = Terms(batch_entries=400, deadline_seconds=20, longest_pause_seconds=0.05, poll_seconds=0.01)


async def quiet(_event: SinkEvent) -> None:
    """What is told is the shipper's own test."""


async def test_a_server_that_refuses_large_batches_for_want_of_memory_gets_all_in_small_ones(tmp_path: Path) -> None:
    log, told = FakeLog(1_000), set[str]()
    with ElasticsearchNode(tmp_path / "node", disk=PRESSURE) as node, node.client() as admin:
        _, key = node.make_api_key("busy", "busy-*")
        shipper = Shipper(
            ElasticSink("elastic", node.keyed_client(key), "busy"), log, tmp_path, write_atomically, quiet, TERMS
        )
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shipper.run)
                while shipper.status.position < log.size:
                    told.add(str(shipper.status.last_error))
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        admin.indices.refresh(index="busy-*")
        stored = [hit["_id"] for hit in admin.search(index="busy-*", size=2_000, source=False)["hits"]["hits"]]
    assert any("429 (es_rejected_execution_exception)" in each for each in told), told
    assert len(stored) == len(set(stored)) == log.size
    assert shipper.status.quarantined == 0

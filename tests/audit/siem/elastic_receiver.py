"""A real Elasticsearch as the receiver of `sink_contract.py`."""

from __future__ import annotations

from pathlib import Path

from audit.siem.elastic import ElasticSink
from tests.audit.siem.conftest import Indices
from tests.elasticsearch_node.process import ElasticsearchNode


class ElasticReceiver:
    """For the contract of all sinks."""

    def __init__(self, indices: Indices) -> None:
        self._indices = indices

    def sink(self) -> ElasticSink:
        node = self._indices.node
        return ElasticSink("elastic", node.keyed_client(self._indices.key, seconds=4), self._indices.name)

    def start(self) -> None:
        self._indices.node.start()

    def kill(self) -> None:
        self._indices.node.kill()

    def freeze(self) -> None:
        self._indices.node.pause()

    def thaw(self) -> None:
        self._indices.node.go_on()

    def held(self) -> list[str]:
        return sorted(self._indices.stored(), key=lambda each: int(each.rpartition("-")[2]))

    def secrets(self) -> list[str]:
        return [self._indices.key]


class ElasticsearchReceiver(ElasticReceiver):
    """With a node of its own, for a soak."""

    def __init__(self, folder: Path) -> None:
        node = ElasticsearchNode(folder / "node")
        node.start()
        key_id, key = node.make_api_key("soak", "soak-*")
        self._admin = node.client()
        sink = ElasticSink("elastic", node.keyed_client(key), "soak")
        super().__init__(Indices(node, "soak", sink, self._admin, key_id, key))

    def close(self) -> None:
        self._admin.close()
        self.kill()

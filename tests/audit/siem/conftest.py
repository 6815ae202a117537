"""One real Elasticsearch for all tests of a worker; each test has indices of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from elasticsearch import Elasticsearch
from elasticsearch.helpers import scan

from audit.siem.elastic import ElasticSink
from tests.elasticsearch_node.fixtures import elasticsearch
from tests.elasticsearch_node.process import ElasticsearchNode

__all__ = ["elasticsearch"]

_numbers = itertools.count()


@dataclass
class Indices:
    """Indices of one test: `sink` delivers to them with an API key of their own, `admin` may do anything."""

    node: ElasticsearchNode
    name: str
    sink: ElasticSink
    admin: Elasticsearch
    key_id: str
    key: str

    def stored(self) -> list[str]:
        """All ids, page by page: one search shows 10,000 at most."""
        index = f"{self.name}-*"
        self.admin.indices.refresh(index=index, allow_no_indices=True)
        return [hit["_id"] for hit in scan(self.admin, index=index, _source=False, size=5_000)]


@pytest.fixture
def indices(elasticsearch: ElasticsearchNode) -> Iterator[Indices]:
    name = f"test{next(_numbers)}"
    key_id, key = elasticsearch.make_api_key(name, f"{name}-*")
    client = elasticsearch.keyed_client(key)
    with elasticsearch.client() as admin:
        yield Indices(elasticsearch, name, ElasticSink("siem", client, name), admin, key_id, key)
    client.close()

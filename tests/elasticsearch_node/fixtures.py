"""One real Elasticsearch for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.elasticsearch_node.process import ElasticsearchNode


@pytest.fixture(scope="session")
def elasticsearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElasticsearchNode]:
    with ElasticsearchNode(tmp_path_factory.mktemp("elasticsearch")) as node:
        yield node

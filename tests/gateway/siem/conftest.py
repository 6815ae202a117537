"""A gateway that delivers its log to a real Elasticsearch."""

from __future__ import annotations

from tests.elasticsearch_node.fixtures import elasticsearch

__all__ = ["elasticsearch"]

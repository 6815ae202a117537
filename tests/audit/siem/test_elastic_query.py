"""Elasticsearch answers as the reference does, whatever is asked of whatever records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from audit.query import Node, facets_of, fields, matches
from audit.query.tree import Between, Is, Like, Or, Wild
from audit.siem.document import facets_document
from audit.siem.elastic_query import query_of
from audit.siem.mapping import MAPPING
from tests.audit.query.documents import NODES, documents
from tests.elasticsearch_node.process import ElasticsearchNode

pytestmark = pytest.mark.real

_numbers = itertools.count()


@pytest.fixture(scope="module")
def admin(elasticsearch: ElasticsearchNode) -> Iterator[Elasticsearch]:
    with elasticsearch.client() as client:
        yield client


def answers(admin: Elasticsearch, found: Sequence[dict[str, Any]], nodes: Sequence[Node]) -> list[list[int]]:
    """What the server finds among these records, for each question."""
    name = f"queries{next(_numbers)}"
    admin.indices.create(index=name, mappings=MAPPING, settings={"number_of_replicas": 0})
    operations: list[Any] = []
    for index, one in enumerate(found):
        facets = facets_document(facets_of(index, one))
        operations += [{"index": {"_id": str(index)}}, {"sealane": {"facets": facets}}]
    stored = admin.bulk(index=name, operations=operations, refresh=True)
    assert not stored["errors"], stored
    searches: list[Any] = []
    for where in nodes:
        searches += [{"index": name}, {"query": query_of(where), "size": 1000, "_source": False}]
    replies = admin.msearch(searches=searches)["responses"]
    admin.indices.delete(index=name)
    assert all(reply["status"] == 200 for reply in replies), [reply for reply in replies if reply["status"] != 200]
    return [sorted(int(hit["_id"]) for hit in reply["hits"]["hits"]) for reply in replies]


def expected(where: Node, found: Sequence[dict[str, Any]]) -> list[int]:
    return [index for index, one in enumerate(found) if matches(where, facets_of(index, one))]


@settings(max_examples=10, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(st.lists(documents(), min_size=20, max_size=40), st.lists(NODES, min_size=20, max_size=60))
def test_every_question_has_the_answer_of_the_reference(
    admin: Elasticsearch, found: list[dict[str, Any]], nodes: list[Node]
) -> None:
    for where, answer in zip(nodes, answers(admin, found, nodes), strict=True):
        wanted = expected(where, found)
        differing = {index: facets_of(index, found[index]) for index in set(answer) ^ set(wanted)}
        assert answer == wanted, (where, query_of(where), differing)


def test_numbers_beyond_a_long_are_compared_and_refuse_nothing(admin: Elasticsearch) -> None:
    nodes: list[Node] = [
        Is(fields.INDEX, 2**70),
        Between(fields.INDEX, None, 2**70),
        Between(fields.INDEX, 2**70, None),
        Between(fields.INDEX, -(2**70), 1),
        Between(fields.INDEX, None, -(2**70)),
    ]
    found = [{"kind": "a"}, {"kind": "b"}, {"kind": "c"}]
    assert answers(admin, found, nodes) == [[], [0, 1, 2], [], [0, 1], []]


def test_a_name_full_of_wildcards_is_no_pattern_and_many_alternatives_are_answered(admin: Elasticsearch) -> None:
    found = [{"kind": "a", "vm": {"name": name}} for name in ("a*", "ab", "a?", "a\\*", "*")]
    nodes: list[Node] = [
        Is(fields.VM_NAME, "a*"),
        Like(fields.VM_NAME, ("a*",)),
        Like(fields.VM_NAME, ("a?",)),
        Like(fields.VM_NAME, ("a\\", Wild.ANY)),
        Like(fields.VM_NAME, ("a", Wild.ONE)),
        Or(tuple(Is(fields.VM_NAME, f"vm-{number}") for number in range(900))),
    ]
    assert answers(admin, found, nodes) == [[0], [0], [2], [3], [0, 1, 2], []]

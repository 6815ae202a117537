"""How many documents fit a query, by time and outcome, as Elasticsearch counts them: its word, which nobody can check.

Records that it returns are verified by their signatures; a number bears none. Reconciliation says whether it counts the
right documents.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from audit.index_questions import MAX_BUCKETS, Bucket
from audit.query import Node, fields
from audit.query.tree import And, Between
from audit.siem.elastic_query import query_of

MAX_OUTCOMES: Final = 50  # of one bucket; there are about a dozen
_NONE: Final = ""  # no outcome is empty

# Of JSON Python reads 1e999 as infinity, and any number of digits: neither may get as far as an answer of ours.
_Number = Annotated[int, Meta(ge=0, le=2**53)]


class _Count(msgspec.Struct, frozen=True):
    count: _Number


class _Outcome(msgspec.Struct, frozen=True):
    key: str
    doc_count: _Number


class _Outcomes(msgspec.Struct, frozen=True):
    buckets: list[_Outcome]
    sum_other_doc_count: _Number


class _Time(msgspec.Struct, frozen=True):
    key: Annotated[int, Meta(ge=-(2**53), le=2**53)]  # milliseconds
    outcomes: _Outcomes


class _Times(msgspec.Struct, frozen=True):
    buckets: list[_Time]


class _Answer(msgspec.Struct, frozen=True):
    times: _Times


def clauses_of(where: Node, origin: str) -> dict[str, Any]:
    """The documents of the log `origin` that fit."""
    return {"bool": {"filter": [query_of(where), {"term": {"sealane.origin": origin}}]}}


def within(where: Node, start: int, width: int, buckets: int) -> Node:
    """Of `where` what is in the histogram: entries without a time are not. Microseconds."""
    return And((where, Between(fields.TIME, start, start + width * buckets, include_high=False)))


def histogram_of(start: int, width: int) -> dict[str, Any]:
    """The aggregation. Microseconds, whole seconds."""
    seconds, offset = width // 10**6, start // 10**6 % (width // 10**6)
    outcomes = {"terms": {"field": "sealane.outcome", "missing": _NONE, "size": MAX_OUTCOMES}}
    return {
        "times": {
            "date_histogram": {
                "field": "@timestamp",
                "fixed_interval": f"{seconds}s",
                "offset": f"{offset}s",
                "min_doc_count": 1,
            },
            "aggs": {"outcomes": outcomes},
        }
    }


def count_of(answer: Any) -> int:
    """How many documents fit. ValueError for what is no answer to this."""
    return msgspec.convert(answer, _Count).count


def buckets_of(aggregations: Any) -> list[Bucket]:
    """By time, then outcome, as the index answers. ValueError for what is no answer to this."""
    times = msgspec.convert(aggregations, _Answer).times.buckets
    if len(times) > MAX_BUCKETS or any(each.outcomes.sum_other_doc_count for each in times):
        raise ValueError("more than was asked for")
    found = [Bucket(each.key * 1000, one.key or None, one.doc_count) for each in times for one in each.outcomes.buckets]
    return sorted(found, key=lambda one: (one.start, one.outcome or ""))

"""Elasticsearch 8 and 9, by the official client of 8 (which speaks to both), each call in a worker thread.

Documents go by bulk `create` into an index of their own month, under their own id. What is there already answers 409:
success if it is this very document, and an alarm if it is another one, which somebody with the right to write laid
there first. Indices are chosen by the record's time, not by the day of delivery: a late delivery makes no second copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import elastic_transport
import msgspec
import trio
from elasticsearch import ApiError, Elasticsearch

from audit.index_questions import Bucket
from audit.query import Node
from audit.siem.document import Document
from audit.siem.elastic_counting import buckets_of, clauses_of, count_of, histogram_of, within
from audit.siem.elastic_http import AnswerTooLarge
from audit.siem.elastic_query import query_of
from audit.siem.mapping import MAPPING
from audit.siem.reconcile import Held
from audit.siem.sink import Refusal, SinkAway
from audit.siem.status import one_line
from audit.siem.turns import made

CREATED, CONFLICT, BAD = 201, 409, 400
OCCUPIED: Final = "another document is there under this id: somebody else wrote it, and this record is not at the SIEM"
# Of status 400 only what is said of one document's content is for ever; these an operator can cure.
_CURABLE: Final = frozenset({"index_closed_exception", "validation_exception", "index_template_missing_exception"})
_TEMPLATE_PRIORITY: Final = 500
_PAGE: Final = 1000
_MOST_PER_ENTRY: Final = 10  # documents; who lays down more than that has made the comparison pointless
_THREADS: Final = 6
_PART: Final = 500
Answer = TypeVar("Answer")


class ElasticSink:
    """`indices`: the beginning of the names of the indices. `lifecycle`: a policy of the cluster that they follow."""

    def __init__(
        self, name: str, client: Elasticsearch, indices: str = "sealane-audit", lifecycle: str | None = None
    ) -> None:
        self._name = name
        self._client = client
        self._indices = indices
        self._lifecycle = lifecycle
        self._is_prepared = False
        self._making = trio.Lock()
        # Its own: threads that hang on this server until their time-out must not be missing elsewhere.
        self._limiter = trio.CapacityLimiter(_THREADS)

    @property
    def name(self) -> str:
        return self._name

    @property
    def pattern(self) -> str:
        return f"{self._indices}-*"

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        """See `Sink.deliver`."""
        if not self._is_prepared:
            await self._call(self._put_template)
            self._is_prepared = True
        # In parts, whose documents are made one part after the other: the server works on one while the next is made.
        parts = [batch[at : at + _PART] for at in range(0, len(batch), _PART)]
        answers: dict[int, list[Refusal]] = {}
        failures: list[SinkAway] = []

        async def send(number: int) -> None:
            try:
                answers[number] = await self._send(parts[number])
            except SinkAway as away:
                failures.append(away)

        async with trio.open_nursery() as nursery:
            for number in range(len(parts)):
                nursery.start_soon(send, number)
        if failures:
            raise failures[0]
        return [refusal for number in range(len(parts)) for refusal in answers[number]]

    async def _send(self, batch: Sequence[Document]) -> list[Refusal]:
        async with self._making:
            operations = await made(self._operation, batch)
        try:
            return await self._call(lambda: self._bulk(batch, operations))
        except _TooLarge:
            if len(batch) == 1:
                return [Refusal(batch[0].index, "is too large for one request to this server")]
            middle = len(batch) // 2
            return [*await self._send(batch[:middle]), *await self._send(batch[middle:])]

    async def read_back(self, start: int, end: int, origin: str) -> Sequence[Held]:
        """What the server holds for entries [start, end) of the log `origin`, by sequence. Raises SinkAway."""
        in_range = [{"range": {"event.sequence": {"gte": start, "lt": end}}}, {"term": {"sealane.origin": origin}}]
        most = _MOST_PER_ENTRY * max(_PAGE, end - start)
        return await self._call(lambda: self._all({"bool": {"filter": in_range}}, most))

    async def strangers(self, size: int, origin: str) -> Sequence[Held]:
        """Documents that no entry of ours can account for: without a place in the log, or beyond its end."""
        known = [{"range": {"event.sequence": {"gte": 0, "lt": size}}}, {"term": {"sealane.origin": origin}}]
        others = {"exists": {"field": "sealane.origin"}}
        foreign = {"bool": {"must": [others], "must_not": [{"term": {"sealane.origin": origin}}]}}
        query = {"bool": {"must_not": [{"bool": {"filter": known}}, foreign]}}
        return await self._call(lambda: list(self.search(query, most=_PAGE)))

    async def find(self, where: Node, origin: str, after: int | None, limit: int) -> Sequence[Held]:
        """The newest `limit` documents of the log that fit, below entry `after`. Raises SinkAway."""
        clauses: list[dict[str, Any]] = [query_of(where), {"term": {"sealane.origin": origin}}]
        if after is not None:
            clauses.append({"range": {"event.sequence": {"lt": after}}})
        return await self._call(lambda: self._page({"bool": {"filter": clauses}}, limit))

    async def count(self, where: Node, origin: str) -> int:
        """How many documents of the log fit, by the server's own word. Raises SinkAway."""

        def ask() -> int:
            return count_of(self._client.count(index=self.pattern, query=clauses_of(where, origin)).body)

        return await self._call(ask)

    async def histogram(self, where: Node, origin: str, start: int, width: int, buckets: int) -> list[Bucket]:
        """See `Questions.histogram`; whole seconds. Raises SinkAway."""
        query = clauses_of(within(where, start, width, buckets), origin)
        aggregations = histogram_of(start, width)

        def ask() -> list[Bucket]:
            answer = self._client.search(index=self.pattern, query=query, aggregations=aggregations, size=0).body
            return buckets_of(answer.get("aggregations", {"times": {"buckets": []}}))

        return await self._call(ask)

    async def refresh(self) -> None:
        """Make what was delivered visible to searches."""
        await self._call(lambda: self._client.indices.refresh(index=self.pattern, allow_no_indices=True))

    async def close(self) -> None:
        await trio.to_thread.run_sync(self._client.close, limiter=self._limiter)

    def _all(self, query: dict[str, Any], most: int) -> list[Held]:
        """Of a server that never comes to an end, no more than can be held."""
        found = list(self.search(query, most=most))
        if len(found) >= most:
            raise SinkAway(f"Elasticsearch claims {most} documents and more where far fewer can be: look at it")
        return found

    def search(self, query: dict[str, Any], most: int | None = None) -> Iterator[Held]:
        """All hits, page by page, at one moment of the indices. In a worker thread."""
        if not self._client.indices.exists(index=self.pattern, allow_no_indices=False):
            return
        point = self._client.open_point_in_time(index=self.pattern, keep_alive="1m").body["id"]
        try:
            after: list[Any] | None = None
            found, size = 0, _PAGE
            while True:
                try:
                    answer = self._client.search(
                        query=query,
                        pit={"id": point, "keep_alive": "1m"},
                        sort=[{"event.sequence": {"order": "asc", "missing": "_last"}}, {"_shard_doc": "asc"}],
                        size=size,
                        search_after=after,
                        track_total_hits=False,
                    ).body
                except AnswerTooLarge:
                    if size == 1:
                        raise
                    size = max(1, size // 4)
                    continue
                hits = answer["hits"]["hits"]
                if len(hits) > size:
                    raise SinkAway("Elasticsearch answers with more documents than were asked for")
                yield from map(_held, hits)
                found += len(hits)
                if len(hits) < size or (most is not None and found >= most):
                    return
                after = hits[-1]["sort"]
        finally:
            self._client.close_point_in_time(id=point)

    def _page(self, query: dict[str, Any], limit: int) -> list[Held]:
        answer = self._client.search(
            index=self.pattern,
            query=query,
            sort=[{"event.sequence": {"order": "desc", "unmapped_type": "long"}}],
            size=limit,
            allow_no_indices=True,
            track_total_hits=False,
        ).body
        return [_held(hit) for hit in answer["hits"]["hits"]]

    def _operation(self, document: Document) -> bytes:
        """Two lines of a bulk request, encoded here: ten times as fast as by the client."""
        create = {"create": {"_index": self._index_of(document), "_id": document.id}}
        return msgspec.json.encode(create) + b"\n" + msgspec.json.encode(document.body)

    def _bulk(self, batch: Sequence[Document], operations: Sequence[Any]) -> list[Refusal]:
        answer = self._client.bulk(
            operations=operations, filter_path="items.create._id,items.create.status,items.create.error"
        ).body
        refused, conflicts = _outcomes(batch, answer)
        return refused + (self._occupied(conflicts) if conflicts else [])

    def _index_of(self, document: Document) -> str:
        return f"{self._indices}-{document.head.time[:7].replace('-', '.')}"

    def _occupied(self, conflicts: Sequence[Document]) -> list[Refusal]:
        """Refusals for those in whose place stands something else."""
        wanted = [{"_index": self._index_of(each), "_id": each.id} for each in conflicts]
        found = self._client.mget(docs=wanted).body["docs"]
        if [hit.get("_id") for hit in found] != [each.id for each in conflicts]:
            raise SinkAway("Elasticsearch answers for other documents than were asked for")
        return [
            Refusal(each.index, OCCUPIED)
            for each, hit in zip(conflicts, found, strict=True)
            if hit.get("_source") != each.body
        ]

    def _put_template(self) -> None:
        """Without it the first document would decide the types of all fields, and a pipeline could change them."""
        settings: dict[str, Any] = {"index.default_pipeline": "_none", "index.final_pipeline": "_none"}
        if self._lifecycle is not None:
            settings["index.lifecycle.name"] = self._lifecycle
        self._client.indices.put_index_template(
            name=self._indices,
            index_patterns=[self.pattern],
            priority=_TEMPLATE_PRIORITY,
            template={"mappings": MAPPING, "settings": settings},
        )

    async def _call(self, work: Callable[[], Answer]) -> Answer:
        """`work` in a thread. Cancelled, the thread is left to its own time-out: what it did is done again."""
        try:
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        except ApiError as error:
            if error.status_code == 413:
                raise _TooLarge("the request is too large for this server") from None
            raise SinkAway(_cause(error), _retry_after(error)) from None
        except elastic_transport.TransportError as error:
            raise SinkAway(one_line(f"Elasticsearch: {error.message}")) from None
        except elastic_transport.ApiError as error:
            raise SinkAway(one_line(f"Elasticsearch: {error}")) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            # The client types its answers, and no one checks them: what is not there, or is something else, is a lie.
            raise SinkAway(f"Elasticsearch answers what is no answer to this ({type(error).__name__})") from None


def _held(hit: Any) -> Held:
    return Held(str(hit["_id"]), f"{hit['_index']}/{hit['_id']}", hit["_source"])


class _TooLarge(SinkAway):
    """413: smaller batches may pass."""


def _outcomes(sent: Sequence[Document], answer: Any) -> tuple[list[Refusal], list[Document]]:
    """What was refused for ever, and what met a document under its id.

    Raises SinkAway unless the answer speaks of exactly what was sent, and for what an operator or time can cure.
    """
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list) or len(items) != len(sent):
        raise SinkAway("Elasticsearch answers for other documents than were sent")
    refused, conflicts = [], []
    for document, item in zip(sent, items, strict=True):
        told = item.get("create") if isinstance(item, dict) else None
        if not isinstance(told, dict) or told.get("_id") != document.id:
            raise SinkAway("Elasticsearch answers for other documents than were sent")
        status, error = told.get("status"), told.get("error")
        if status == CREATED:
            continue
        if status == CONFLICT:
            conflicts.append(document)
            continue
        kind = error.get("type") if isinstance(error, dict) else None
        cause = one_line(f"{kind}: {error.get('reason')}" if isinstance(error, dict) else f"status {status}")
        if status != BAD or kind in _CURABLE:
            raise SinkAway(f"Elasticsearch: {cause}")
        refused.append(Refusal(document.index, cause))
    return refused, conflicts


def _cause(error: ApiError) -> str:
    remedy = {
        401: "; give it an API key that is valid",
        403: "; its API key needs create_doc, create_index, read and maintenance on the indices, "
        "and manage_index_templates",
    }.get(error.status_code, "")
    return one_line(f"Elasticsearch answers {error.status_code} ({error.error}){remedy}")


def _retry_after(error: ApiError) -> float | None:
    """Seconds; the other form of this header, a date, is left to our own back-off."""
    told = str(error.meta.headers.get("retry-after", ""))
    return float(told) if told.isascii() and told.isdigit() and len(told) < 10 else None

"""Splunk's HTTP Event Collector, with indexer acknowledgement.

HEC answers 200 when it has understood a request, not when the events are indexed. So each request goes over a channel,
its answer gives an acknowledgement id, and the batch counts once `/services/collector/ack` says `true` for that id.
`false` may mean pending, failed or never heard of: after the shipper's deadline the batch is sent again. Splunk does
not deduplicate; each event has `event_id` as an indexed field, by which searches can (`| dedup event_id`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import trio

from audit.errors import UNDECODABLE
from audit.siem.document import Document
from audit.siem.formats import Format, Line
from audit.siem.formats.text import milliseconds
from audit.siem.https import Answer, HttpsPeer, away
from audit.siem.secrets import read_secret_line
from audit.siem.sink import Refusal, SinkAway
from audit.siem.status import one_line
from audit.siem.turns import made

SOURCE_TYPE: Final = "sealane:audit"
_FIRST_POLL: Final = 0.1
_LONGEST_POLL: Final = 2.0
_INVALID_DATA: Final = frozenset({5, 6, 12, 13, 15})  # HEC's codes that speak of one event
_WORDS: Final = {
    14: "indexer acknowledgement is off for this token: turn it on, without it nothing says that an event was kept",
    4: "the token is invalid",
    1: "the token is disabled",
    7: "the token may not write to this index",
}


class _Said(msgspec.Struct, frozen=True):
    """HEC's answer; what we do not know of is ignored."""

    text: str = ""
    code: int = -1
    ack_id: int | None = msgspec.field(name="ackId", default=None)
    invalid_event: int | None = msgspec.field(name="invalid-event-number", default=None)


class _Acks(msgspec.Struct, frozen=True):
    acks: dict[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class HecSettings:
    """`channel`: one of each sink's own."""

    token_file: Path
    channel: UUID
    index: str | None = None
    form: Format = Format.ENTRY
    max_event_bytes: int = 10_000  # Splunk cuts longer ones unless TRUNCATE of the source type says otherwise


class SplunkSink:
    """`peer`: the collector, without a path, for this sink alone. `hostname` stands in each event as its host."""

    def __init__(
        self,
        name: str,
        peer: HttpsPeer,
        settings: HecSettings,
        line: Line,
        hostname: str,
        read_token: Callable[[Path], str] = read_secret_line,
    ) -> None:
        self._name = name
        self._peer = peer
        self._settings = settings
        self._line = line
        self._hostname = hostname
        self._read_token = read_token
        self._one_at_a_time = trio.Lock()

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        """See `Sink.deliver`. Waits until Splunk has indexed the batch, for as long as the shipper lets it."""
        async with self._one_at_a_time:
            events = list(zip(batch, await made(self._event, batch), strict=True))
            refusals: list[Refusal] = []
            while events:
                answer = await self._post("/services/collector/event", b"".join(event for _, event in events))
                said = _said(answer)
                if answer.status == 200 and said.code == 0:
                    if said.ack_id is None:
                        raise SinkAway(_WORDS[14])
                    await self._until_indexed(said.ack_id)
                    return refusals
                at = _refused_event(answer, said, len(events))
                refusals.append(Refusal(events[at][0].index, one_line(f"HEC code {said.code}: {said.text}")))
                # Splunk takes the events before the refused one, or none: all others are sent again.
                del events[at]
            return refusals

    async def close(self) -> None:
        await self._peer.close()

    def _event(self, document: Document) -> bytes:
        settings = self._settings
        line = self._line(document, settings.max_event_bytes)
        envelope: dict[str, Any] = {
            "time": f"{milliseconds(document.head.time) / 1000:.3f}",
            "host": self._hostname,
            "source": "sealane",
            "sourcetype": SOURCE_TYPE,
            "event": line.decode() if settings.form in {Format.CEF, Format.LEEF} else msgspec.Raw(line),
            "fields": {"event_id": document.id, "sequence": str(document.index), "leaf_hash": document.head.leaf_hash},
        }
        if settings.index is not None:
            envelope["index"] = settings.index
        return msgspec.json.encode(envelope)

    async def _until_indexed(self, ack_id: int) -> None:
        pause = _FIRST_POLL
        asked = msgspec.json.encode({"acks": [ack_id]})
        while True:
            answer = await self._post(f"/services/collector/ack?channel={self._settings.channel}", asked)
            if answer.status != 200:
                raise away(answer)
            try:
                acks = msgspec.json.decode(answer.body, type=_Acks).acks
            except UNDECODABLE:
                raise SinkAway("its acknowledgements are not what HEC sends") from None
            if acks.get(str(ack_id)) is True:
                return
            await trio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_POLL)

    async def _post(self, path: str, body: bytes) -> Answer:
        headers = {
            "authorization": f"Splunk {await trio.to_thread.run_sync(self._read_token, self._settings.token_file)}",
            "x-splunk-request-channel": str(self._settings.channel),
            "content-type": "application/json",
        }
        return await self._peer.post(headers, body, path)


def _said(answer: Answer) -> _Said:
    try:
        return msgspec.json.decode(answer.body, type=_Said)
    except UNDECODABLE:
        return _Said()


def _refused_event(answer: Answer, said: _Said, count: int) -> int:
    """Which event of the request is at fault. Raises SinkAway where none is."""
    if said.code in _WORDS:
        raise SinkAway(one_line(f"HEC code {said.code}: {_WORDS[said.code]}"))
    if answer.status == 413 and count == 1:
        return 0
    at = said.invalid_event
    # Splunk counts from 0; a number beyond the request is a lie, or another version's.
    if answer.status == 400 and said.code in _INVALID_DATA and at is not None and 0 <= at < count:
        return at
    raise away(answer)

"""A webhook: batches as JSON, signed (`webhook_signature.py`), to a receiver of somebody's own.

    {"type":"sealane.audit.entries","timestamp":"…","data":[<line>,<line>,…]}

Each member of `data` is a line of the sink's format: an object, or a text in CEF and LEEF. The receiver answers 2xx
once it has kept all of them. With 400, 413 or 422 it says that it will never take something in there: the batch is
halved until the entry is found that it refuses. Every other answer means later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import trio

from audit.siem.document import Document
from audit.siem.formats import Format, Line
from audit.siem.https import Answer, HttpsPeer, away
from audit.siem.secrets import read_secret
from audit.siem.sink import Refusal, SinkAway
from audit.siem.turns import made
from audit.siem.webhook_signature import Key, parse_keys, signed_headers

TYPE: Final = "sealane.audit.entries"
_REFUSED: Final = frozenset({400, 413, 422})
_SUSPICIOUS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """`key_file`: read for each request, so that keys are replaced at once."""

    key_file: Path
    form: Format = Format.ENTRY
    max_entry_bytes: int = 128 * 1024


class WebhookSink:
    """`peer`: where to post, for this sink alone. `now` gives the wall clock (timezone-aware): it is signed."""

    def __init__(
        self,
        name: str,
        peer: HttpsPeer,
        settings: WebhookSettings,
        line: Line,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._name = name
        self._peer = peer
        self._settings = settings
        self._line = line
        self._now = now
        self._one_at_a_time = trio.Lock()

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        """See `Sink.deliver`."""
        async with self._one_at_a_time:
            return await self._deliver(batch)

    async def close(self) -> None:
        await self._peer.close()

    async def _deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        parts, refusals, is_some_taken = [batch], list[Refusal](), False
        while parts:
            part = parts.pop()
            answer = await self._post(part)
            if 200 <= answer.status < 300:
                is_some_taken = True
            elif answer.status not in _REFUSED:
                raise away(answer)
            elif len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            else:
                refusals.append(Refusal(part[0].index, answer.shown()))
                if not is_some_taken and len(refusals) == _SUSPICIOUS:
                    raise away(answer)  # the receiver is wrong, and should not get two requests for each entry
        return refusals

    async def _post(self, batch: Sequence[Document]) -> Answer:
        now = self._now()
        body = _body(await made(self._member, batch), now)
        keys = await trio.to_thread.run_sync(self._keys)
        headers = signed_headers(keys, message_id(batch), int(now.timestamp()), body)
        return await self._peer.post({**headers, "content-type": "application/json"}, body)

    def _member(self, document: Document) -> str | msgspec.Raw:
        line = self._line(document, self._settings.max_entry_bytes)
        return line.decode() if self._settings.form in {Format.CEF, Format.LEEF} else msgspec.Raw(line)

    def _keys(self) -> Sequence[Key]:
        try:
            return parse_keys(read_secret(self._settings.key_file))
        except ValueError as error:
            raise SinkAway(f"{self._settings.key_file}: {error}") from None


def _body(data: Sequence[str | msgspec.Raw], now: datetime) -> bytes:
    timestamp = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": TYPE, "timestamp": timestamp, "data": data})


def message_id(batch: Sequence[Document]) -> str:
    """Of the entries in it: the same batch has the same id, whenever it is sent."""
    return f"{batch[0].id}-to-{batch[-1].index}-of-{len(batch)}"

"""What every receiver of the log must do. A sink delivers batches; all else (cursor, back-off, quarantine) is the
shipper's, once for all.

Delivery is at least once: after `SinkAway` the shipper does not know what arrived, and sends the whole batch again.
A sink must therefore write under `Document.id`, or say in its documentation that its receiver sees duplicates.
A rendering (CEF, RFC 5424, …) is made of the document alone: what a sink is denied is not in there any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from audit.errors import AuditError
from audit.siem.document import Document


class SinkError(AuditError):
    """Root of what can go wrong with a receiver."""


class SinkAway(SinkError):
    """It is down, slow, full or refuses us at the moment: what arrived is unknown, and the batch is sent again.

    `retry_after_seconds`: what the receiver asked for, if it did. The text is one line and holds no secret.
    """

    def __init__(self, detail: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class SinkStopped(SinkError):
    """Its cursor or its configuration contradicts the log: an operator must look before anything is sent."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry that the receiver will never take (a mapping conflict, say), and what it said of it."""

    index: int
    cause: str


class Sink(Protocol):
    """One receiver. Called by one task, a batch at a time, under the shipper's deadline."""

    @property
    def name(self) -> str: ...

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        """Return once the receiver has taken responsibility for each entry but those returned. Raises SinkAway."""

    async def close(self) -> None: ...


@runtime_checkable
class Unconfirmed(Protocol):
    """A sink whose receiver cannot say what it has kept."""

    @property
    def unconfirmed_entries(self) -> int:
        """How many of the last ones that were delivered are delivered again when the gateway starts."""

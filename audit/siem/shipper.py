"""One sink's delivery: read the log from the cursor on, deliver, move the cursor. One task for each sink, for ever.

A sink that hangs costs its own task a deadline and its own back-off, and delays neither another sink nor an admission.
Memory is one batch, and a small one until a receiver takes it: those that are down cost next to none. What a receiver
will never take goes to a quarantine file, durably, before the cursor passes it. A receiver that refuses everything is
not one that meets bad entries: that is waited for, and nothing is passed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from audit.errors import AuditError, RecordError
from audit.proof import leaf_hash
from audit.siem.cursor import Cursor, read_cursor
from audit.siem.document import Document, LogEntry, Render, document_of
from audit.siem.quarantine import QUARANTINED, Quarantine, Untold
from audit.siem.sink import Refusal, Sink, SinkAway, SinkStopped, Unconfirmed
from audit.siem.status import SinkEvent, State, Status, Terms, one_line
from audit.siem.turns import made

_FIRST_PAUSE: Final = 0.5
_DISK_PAUSE: Final = 5.0  # seconds, where our own does not take the cursor or the quarantine
_FIRST_STRIDE: Final = 32  # entries of a batch at the start, and after a failure; doubled with each that is taken
_JITTER: Final = random.SystemRandom()


class EntrySource(Protocol):
    """The log, as a shipper reads it."""

    @property
    def origin(self) -> str: ...
    @property
    def size(self) -> int: ...

    async def read(self, start: int, end: int) -> list[bytes]:
        """The entries [start, end). Raises AuditError while the log cannot be read."""


class Shipper:
    """`write(path, data)` replaces a file, atomically and durably. `tell` records an event, and raises nothing.

    `render` says how the sink sees an entry, and whether at all; it runs in a worker thread.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the pieces of one delivery
        self,
        sink: Sink,
        source: EntrySource,
        folder: Path,
        write: Callable[[Path, bytes], None],
        tell: Callable[[SinkEvent], Awaitable[None]],
        terms: Terms | None = None,
        render: Render = document_of,
    ) -> None:
        self.sink = sink
        self.status = Status()
        self.render = render
        self.quarantine = Quarantine(folder / f"{sink.name}.quarantine", write)
        self._source = source
        self._cursor_file = folder / f"{sink.name}.cursor"
        self._write = write
        self._tell = tell
        self.terms = terms or Terms()
        self._one_at_a_time = trio.Lock()
        self._told_degraded = False
        self._refused_in_a_row = 0
        self._stride = min(self.terms.batch_entries, _FIRST_STRIDE)
        self._wait_seconds = 0.0  # before the next batch, after one that was let go of
        self._untold = Untold()

    async def run(self) -> None:
        """Deliver until cancelled, or until an operator is needed (`SinkStopped` is told and ends this sink only)."""
        try:
            cursor = await trio.to_thread.run_sync(read_cursor, self._cursor_file, self._source.origin)
            await self._require_same_log(cursor)
            await self._send_unconfirmed(cursor)
            while True:
                cursor = await self._deliver_next(cursor)
        except SinkStopped as stopped:
            self.status.state, self.status.last_error = State.STOPPED, one_line(str(stopped))
            details = {"sink": self.sink.name, "cause": one_line(str(stopped))}
            await self._tell(SinkEvent("siem.stopped", details))
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self.sink.close()

    async def deliver(self, documents: Sequence[Document]) -> Sequence[Refusal]:
        """Send documents beside the cursor, when no other batch is under way. Raises SinkAway."""
        with _within(self.terms.deadline_seconds):
            async with self._one_at_a_time:
                self.status.sent_at = trio.current_time()
                try:
                    return await self.sink.deliver(documents)
                finally:
                    self.status.sent_at = None
        raise AssertionError  # for mypy, which thinks that `_within` may swallow

    async def deliver_again(self, start: int, end: int) -> tuple[int, int]:
        """Send the entries [start, end) once more, beside the cursor; what the receiver has already stays as it is.

        Returns how many were taken, and how many refused for ever. Raises SinkAway, AuditError.
        """
        taken = refused_for_ever = 0
        for first in range(start, end, self.terms.batch_entries):
            entries = await self._read(first, min(end, first + self.terms.batch_entries))
            documents, refused = await self._rendered(entries)
            refusals = [*refused, *await self.deliver(documents)] if documents else refused
            await trio.to_thread.run_sync(self.quarantine.put, refusals, entries)
            gone = {document.index for document in documents} - {refusal.index for refusal in refusals}
            await trio.to_thread.run_sync(self.quarantine.discard, sorted(gone))
            taken += len(documents) + len(refused) - len(refusals)
            refused_for_ever += len(refusals)
        return taken, refused_for_ever

    async def _deliver_next(self, cursor: Cursor) -> Cursor:
        """Wait for entries, deliver some, and return the cursor as it is on disk now."""
        batch = await self._next_batch(cursor)
        documents, refused = await self._rendered(batch)
        unwanted = await self._until_taken(documents)
        if unwanted is None:
            del batch, documents
            await trio.sleep(self._wait_seconds)
            return cursor
        refusals = [*refused, *unwanted]
        if refusals:
            await self._kept(lambda: self.quarantine.put(refusals, batch))
            self._untold.add([each for each in refusals if not _is_about_quarantine(each, documents)])
        moved = Cursor(
            cursor.origin,
            batch[-1].index + 1,
            leaf_hash(batch[-1].entry).hex(),
            cursor.quarantined + len(refusals),
        )
        await self._kept(lambda: self._write(self._cursor_file, msgspec.json.encode(moved)))
        self.status.note(trio.current_time(), len(documents) + len(refused) - len(refusals))
        self._show(moved)
        self._lengthen_stride()
        return moved

    async def _kept(self, keep: Callable[[], None]) -> None:
        """Once our own disk takes it: what the receiver has taken is not sent again for that."""
        failed = False
        while True:
            try:
                await trio.to_thread.run_sync(keep)
            except OSError as error:
                failed = True
                await self._fails(f"{self._cursor_file.parent}: {error.strerror}")
                await trio.sleep(_DISK_PAUSE)
            else:
                if failed:
                    await self._works_again()
                return

    async def _next_batch(self, cursor: Cursor) -> list[LogEntry]:
        terms = self.terms
        while True:
            self._show(cursor)
            await self._tell_quarantined()
            size = self._source.size
            if size < cursor.position:
                raise SinkStopped(f"the log has {size} entries and {cursor.position} were delivered: it was put back")
            if size > cursor.position:
                try:
                    batch = await self._read(cursor.position, min(size, cursor.position + self._stride))
                except AuditError as error:
                    self.status.last_error = one_line(str(error))
                else:
                    return _bounded(batch, terms.batch_bytes)
            await trio.sleep(terms.poll_seconds)

    async def _read(self, start: int, end: int) -> list[LogEntry]:
        entries = await self._source.read(start, end)
        return [LogEntry(self._source.origin, index, entry) for index, entry in enumerate(entries, start)]

    async def _rendered(self, batch: Sequence[LogEntry]) -> tuple[list[Document], list[Refusal]]:
        documents, refused = [], []
        for seen in await made(self._seen, batch):
            match seen:
                case Document():
                    documents.append(seen)
                case Refusal():
                    refused.append(seen)
        return documents, refused

    def _seen(self, entry: LogEntry) -> Document | Refusal | None:
        try:
            return self.render(entry)
        except RecordError as error:
            return Refusal(entry.index, one_line(f"is no entry of ours: {error}"))

    async def _until_taken(self, batch: Sequence[Document]) -> Sequence[Refusal] | None:
        """What was refused of it; None where it failed and is too long to be kept: after `_wait_seconds`, fewer."""
        terms, pause = self.terms, _FIRST_PAUSE
        while True:
            asked = None
            try:
                refusals = await self.deliver(batch) if batch else ()
                self._require_some_taken(batch, refusals)
            except SinkAway as away:
                cause, asked = str(away), away.retry_after_seconds
            else:
                if batch:
                    await self._works_again()
                return refusals
            await self._fails(cause)
            # It may ask for a longer pause, and not for none: whoever is behind it would have us send without end.
            wait = max(min(asked or 0.0, terms.longest_pause_seconds), pause * _JITTER.uniform(0.5, 1))
            self._stride = min(terms.batch_entries, _FIRST_STRIDE)
            if len(batch) > self._stride:
                self._wait_seconds = wait
                return None
            await trio.sleep(wait)
            pause = min(pause * 2, terms.longest_pause_seconds)

    def _lengthen_stride(self) -> None:
        self._stride = min(self.terms.batch_entries, self._stride * 2)

    def _require_some_taken(self, batch: Sequence[Document], refusals: Sequence[Refusal]) -> None:
        """Raises SinkAway where so many were refused in a row that the receiver must be wrong, not the entries."""
        if len(refusals) < len(batch):
            self._refused_in_a_row = 0
            return
        if self._refused_in_a_row + len(batch) >= self.terms.refused_in_a_row:
            raise SinkAway(f"it refuses every entry, the last one because: {refusals[-1].cause}")
        self._refused_in_a_row += len(batch)

    async def _fails(self, cause: str) -> None:
        status, now = self.status, trio.current_time()
        status.state, status.last_error = State.FAILING, one_line(cause)
        if status.failing_since is None:
            status.failing_since = now
        if not self._told_degraded and now - status.failing_since >= self.terms.degraded_seconds:
            self._told_degraded = True
            details = {"sink": self.sink.name, "cause": one_line(cause), "lag": status.lag}
            await self._tell(SinkEvent("siem.degraded", details))

    async def _works_again(self) -> None:
        status = self.status
        status.state = State.DELIVERING
        since, status.failing_since = status.failing_since, None
        if self._told_degraded and since is not None:
            self._told_degraded = False
            seconds = int(trio.current_time() - since)
            await self._tell(SinkEvent("siem.recovered", {"sink": self.sink.name, "failing_seconds": seconds}))

    async def _tell_quarantined(self) -> None:
        """At most once in a while: each record of it goes to the same receiver, and may be refused there, too."""
        if (told := self._untold.take(trio.current_time(), self.terms.quarantine_pause_seconds)) is not None:
            await self._tell(SinkEvent(QUARANTINED, {"sink": self.sink.name, **told}))

    async def _require_same_log(self, cursor: Cursor) -> None:
        """The last entry that was delivered must still be what it was. Raises SinkStopped."""
        if cursor.last is None:
            return
        if self._source.size < cursor.position:
            raise SinkStopped(f"the log has {self._source.size} entries and {cursor.position} were delivered")
        (last,) = await self._read_in_the_end(cursor.position - 1, cursor.position)
        if leaf_hash(last.entry).hex() != cursor.last:
            raise SinkStopped(f"entry {cursor.position - 1} is not the one that was delivered: this is another log")

    async def _send_unconfirmed(self, cursor: Cursor) -> None:
        """What the receiver may have lost unread while we were stopped. What it refuses is in quarantine already."""
        if not isinstance(self.sink, Unconfirmed):
            return
        first = max(0, cursor.position - self.sink.unconfirmed_entries)
        while first < cursor.position:
            batch = await self._read_in_the_end(first, min(cursor.position, first + self._stride))
            documents, _ = await self._rendered(batch)
            if await self._until_taken(documents) is None:
                del batch, documents
                await trio.sleep(self._wait_seconds)
            else:
                first += len(batch)
                self._lengthen_stride()

    async def _read_in_the_end(self, start: int, end: int) -> list[LogEntry]:
        """Waits while the log cannot be read."""
        while True:
            try:
                return await self._read(start, end)
            except AuditError as error:
                self.status.last_error = one_line(str(error))
                await trio.sleep(self.terms.poll_seconds)

    def _show(self, cursor: Cursor) -> None:
        status = self.status
        status.position, status.log_size, status.quarantined = cursor.position, self._source.size, cursor.quarantined
        if status.state is State.STARTING:
            status.state = State.DELIVERING


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises SinkAway once they are over."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise SinkAway(f"no answer within {seconds:.0f} s") from None


def _is_about_quarantine(refusal: Refusal, documents: Sequence[Document]) -> bool:
    return any(each.index == refusal.index and each.head.kind == QUARANTINED for each in documents)


def _bounded(batch: list[LogEntry], limit_bytes: int) -> list[LogEntry]:
    """As many of the first entries as fit, and at least one."""
    total = 0
    for count, each in enumerate(batch):
        total += len(each.entry)
        if count and total > limit_bytes:
            return batch[:count]
    return batch

"""Group commit: what concurrent requests want to log is gathered, built in one thread and appended in another one.

The log is used by one thread at a time: appends and reads share a limiter of one. A waiter is told its index only
after the commit is durable. If the log fails, all its waiters are told so, and nothing is appended until it has been
reopened, which recovers it: with all checks of a start, as a continuation of what was last acknowledged, and with a
record of the outage committed as the proof that the disk takes writes again. That is tried by itself: after a second,
then every two, or as much more slowly as an attempt on a long log takes, so that trying never fills the time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import structlog
import trio

from audit.checkpoint import Checkpoint, LogSigner
from audit.errors import LogDamaged, LogError
from audit.group import Draft, sign_drafts
from audit.log import Commit, EntryBuilder, Log, Recovery, build_entries
from gateway.errors import LogUnavailable, Overloaded

MAX_BATCH: Final = 64
REOPEN_SECONDS: Final = 1.0  # before the first attempt to reopen a failed log
LATER_SECONDS: Final = 2.0  # before each further one: whoever mends the disk is not kept waiting
MAX_REOPEN_SECONDS: Final = 30.0
# Times as long as an attempt took, before the next one: a log of millions of entries is looked at whole.
REST: Final = 9
SAID_AGAIN_SECONDS: Final = 60.0  # that it fails still, for the same reason

log = structlog.get_logger("gateway.committer")
Answer = TypeVar("Answer")


class OpenLog(Protocol):
    def __call__(self) -> Log:
        """Open (and recover) the log. Errors: LogError, OSError."""


@dataclass(frozen=True, slots=True)
class Committed:
    """`index` is that of the builder's first entry; `commit` proves it."""

    index: int
    commit: Commit


@dataclass(frozen=True, slots=True)
class Outage:
    """Why nothing could be logged, for how long, what reopening cut off; `attempts` to reopen, the last one good.

    `lately`: why the attempt before the last one failed, where that was another reason.
    """

    because: str
    lately: str | None
    seconds: float
    attempts: int
    recovery: Recovery | None


class _Waiter:
    def __init__(self, builder: EntryBuilder) -> None:
        self.builder = builder
        self.done = trio.Event()
        self.answer: Committed | Exception | None = None

    def tell(self, answer: Committed | Exception) -> None:
        self.answer = answer
        self.done.set()


@dataclass(slots=True)
class _Group:
    """Waiters with their entries, for the place in the log that begins at `start`; signed together, at last."""

    start: int
    waiters: list[_Waiter] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    first_index: list[int] = field(default_factory=list)
    refused: list[tuple[_Waiter, Exception]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.drafts)

    def add(self, waiter: _Waiter, drafts: Sequence[Draft]) -> None:
        self.first_index.append(self.end)
        self.waiters.append(waiter)
        self.drafts += drafts

    def tell_refused(self) -> None:
        for waiter, error in self.refused:
            waiter.tell(error)


class Committer:
    """`open_log` is called in the worker thread, at the start and after each failure."""

    def __init__(self, open_log: OpenLog, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_log = open_log
        self._clock = clock
        self._limiter = trio.CapacityLimiter(1)
        self._building = trio.CapacityLimiter(1)
        self._one_builder = threading.Lock()  # building anew happens in the log's thread
        self._send, self._receive = trio.open_memory_channel[_Waiter](queue)
        self._log: Log | None = None
        self._signer: LogSigner | None = None
        self._broken = trio.Event()
        self._failed_at = 0.0
        self._failed_first = ""
        self._attempts = 0
        self._next_attempt = 0.0
        self._said: tuple[str, float] = ("", 0.0)  # why it failed, and when that was logged
        self._acknowledged: Checkpoint | None = None
        self.announce: Callable[[Outage], EntryBuilder] | None = None  # the record of an outage
        self.failed_because: str | None = None
        self.size = 0  # of the log, as of the last commit
        self.recovery: Recovery | None = None  # what the first opening cut off

    async def open(self) -> None:
        """Open the log for the first time. Errors: LogError, OSError (the gateway does not start)."""
        self._log = await trio.to_thread.run_sync(self._open_log, limiter=self._limiter)
        self._signer, self.recovery = self._log.signer, self._log.recovery
        self._remember(self._log.size, self._log.root_at(self._log.size), self._log.origin)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled. A commit under way is finished first: its waiters may be answered still."""
        task_status.started()
        group = await self._gather(self.size)
        while True:
            if group.start != self.size:  # the one before it failed
                group = await self._built(group.waiters, self.size)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._commit, group)
                # While the disk works, the next group is signed, for the place that it will have if this one succeeds.
                upcoming = await self._gather(group.end)
            group = upcoming

    async def keep_open(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reopen the log after each failure, until cancelled. Without it, only requests would try."""
        task_status.started()
        while True:
            await self._broken.wait()
            self._broken = trio.Event()
            while self.failed_because is not None:
                await trio.sleep(max(0.01, self._next_attempt - self._clock()))
                try:
                    await self.read(lambda _log: None)
                except LogUnavailable:
                    pass  # it was logged, and the next attempt is later

    async def distrust(self, because: str) -> None:
        """Somebody found the log's files damaged: stop until reopening finds them in order."""
        await trio.to_thread.run_sync(self._distrust, because, limiter=self._limiter)
        self._broken.set()

    async def append(self, builder: EntryBuilder) -> Committed:
        """Log the entries of `builder` and return once they are durable.

        Cancellation leaves it open whether they are logged. Errors: LogUnavailable, Overloaded (nothing logged),
        or what the builder raised (nothing of it logged).
        """
        waiter = _Waiter(builder)
        try:
            self._send.send_nowait(waiter)
        except trio.WouldBlock as error:
            raise Overloaded("too many requests wait for the log") from error
        await waiter.done.wait()
        assert waiter.answer is not None
        if isinstance(waiter.answer, Exception):
            raise waiter.answer
        return waiter.answer

    async def read(self, question: Callable[[Log], Answer]) -> Answer:
        """Ask the log something, between commits. Errors: LogUnavailable, and what `question` raises."""
        try:
            return await trio.to_thread.run_sync(self._read, question, limiter=self._limiter)
        except LogUnavailable:
            self._broken.set()
            raise

    async def close(self) -> None:
        if self._log is not None:
            await trio.to_thread.run_sync(self._log.close, limiter=self._limiter)
            self._log = None

    async def _gather(self, start: int) -> _Group:
        """The next waiters, at least one, with their entries as they are from index `start` on."""
        while True:
            waiters = [await self._receive.receive()]
            while len(waiters) < MAX_BATCH:
                try:
                    waiters.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            group = await self._built(waiters, start)
            if group.entries:
                return group

    async def _built(self, waiters: Sequence[_Waiter], start: int) -> _Group:
        group = await trio.to_thread.run_sync(self._build, waiters, start, limiter=self._building)
        group.tell_refused()
        return group

    def _build(self, waiters: Sequence[_Waiter], start: int) -> _Group:
        """One builder may be at fault (an entry too large, say): the others do not suffer for it."""
        group = _Group(start)
        with self._one_builder:
            for waiter in waiters:
                try:
                    drafts = build_entries(waiter.builder, group.end)
                except Exception as error:  # noqa: BLE001 - told to the waiter whose builder raised it
                    group.refused.append((waiter, error))
                else:
                    group.add(waiter, drafts)
        assert self._signer is not None
        try:
            group.entries = sign_drafts(group.drafts, self._signer)
        except Exception as error:  # noqa: BLE001 - told to all whose records would have been signed
            return _Group(start, refused=[*group.refused, *((waiter, error) for waiter in group.waiters)])
        return group

    async def _commit(self, group: _Group) -> None:
        try:
            # Not abandoned on cancellation: a thread left behind would use the log beside the next one.
            with trio.CancelScope(shield=True):
                committed, commit = await trio.to_thread.run_sync(self._append, group, limiter=self._limiter)
        except LogUnavailable as error:
            self._broken.set()
            for waiter in group.waiters:
                waiter.tell(LogUnavailable(error.detail))
            return
        except Exception as error:  # noqa: BLE001 - the edge of every request: each answers for itself, fails closed
            for waiter in group.waiters:
                waiter.tell(error)
            return
        committed.tell_refused()
        if commit is not None:
            for waiter, index in zip(committed.waiters, committed.first_index, strict=True):
                waiter.tell(Committed(index, commit))

    def _append(self, group: _Group) -> tuple[_Group, Commit | None]:
        """Commit the group; built anew if the log has another size than it was built for: one before it failed."""
        usable = self._usable_log()
        if usable.size != group.start:
            group = self._build(group.waiters, usable.size)
        if not group.entries:
            return group, None
        try:
            commit = usable.commit(group.entries, group.first_index)
        except (LogError, OSError) as error:
            raise self._failed(error) from error
        self._remember(commit.size, commit.root, usable.origin)
        return group, commit

    def _read(self, question: Callable[[Log], Answer]) -> Answer:
        usable = self._usable_log()
        try:
            return question(usable)
        except (LogError, OSError) as error:
            raise self._failed(error) from error

    def _distrust(self, because: str) -> None:
        if self._log is not None:
            self._failed(LogDamaged(because))

    def _usable_log(self) -> Log:
        """The log, reopened if it failed before. In the worker thread."""
        if self._log is not None:
            return self._log
        if self._clock() < self._next_attempt:
            raise LogUnavailable(f"the audit log failed: {self.failed_because}")
        self._attempts += 1
        begun = self._clock()
        try:
            self._log = self._reopened()
        except (LogError, OSError) as error:
            raise self._failed(error, took=self._clock() - begun) from error
        log.warning("audit log reopened", size=self.size, attempts=self._attempts)
        self.failed_because, self._attempts, self._said = None, 0, ("", 0.0)
        return self._log

    def _reopened(self) -> Log:
        """The log, recovered, with the outage on record."""
        reopened = self._open_log()
        try:
            if self._acknowledged is not None:
                reopened.require_extends(self._acknowledged)
            self.size = reopened.size
            if self.announce is not None and self.failed_because is not None:
                seconds = self._clock() - self._failed_at
                lately = self.failed_because if self.failed_because != self._failed_first else None
                outage = Outage(self._failed_first, lately, seconds, self._attempts, reopened.recovery)
                commit = reopened.append([self.announce(outage)])
                self._remember(commit.size, commit.root, reopened.origin)
        except BaseException:
            reopened.close()
            raise
        return reopened

    def _remember(self, size: int, root: bytes, origin: str) -> None:
        self.size, self._acknowledged = size, Checkpoint(origin, size, root)

    def _failed(self, error: Exception, took: float = 0.0) -> LogUnavailable:
        """`took`: seconds that the attempt to reopen it has cost."""
        failed, self._log = self._log, None
        now = self._clock()
        if self.failed_because is None:
            self._failed_at, self._failed_first = now, str(error)
        pause = LATER_SECONDS if self._attempts else REOPEN_SECONDS
        self._next_attempt = now + min(MAX_REOPEN_SECONDS, max(pause, REST * took))
        self.failed_because = str(error)
        if self._said[0] != str(error) or now - self._said[1] >= SAID_AGAIN_SECONDS:
            self._said = (str(error), now)
            log.error("audit log failed: nothing is permitted until it recovers", error=str(error))
        if failed is not None:
            try:
                failed.close()
            except (LogError, OSError) as close_error:
                log.warning("closing the failed log failed, too", error=str(close_error))
        return LogUnavailable(f"the audit log failed: {error}")

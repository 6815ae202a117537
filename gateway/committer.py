"""Group commit: one task gathers what concurrent requests want to log and appends it in one worker thread.

The log is used by one thread at a time: appends and reads share a limiter of one. A waiter is told its index only
after the commit is durable. If the log fails, all its waiters are told so, and the log is reopened, which recovers
it, before anything else is appended: nothing is retried on a log in an unknown state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import structlog
import trio

from audit.errors import LogError
from audit.log import Commit, EntryBuilder, Log, Recovery
from gateway.errors import LogUnavailable, Overloaded

MAX_BATCH: Final = 64
REOPEN_SECONDS: Final = 1.0  # between attempts: a request finds a failed log reopened at most this often

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


class _Waiter:
    def __init__(self, builder: EntryBuilder) -> None:
        self.builder = builder
        self.done = trio.Event()
        self.answer: Committed | Exception | None = None

    def tell(self, answer: Committed | Exception) -> None:
        self.answer = answer
        self.done.set()


class Committer:
    """`open_log` is called in the worker thread, at the start and after each failure."""

    def __init__(self, open_log: OpenLog, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_log = open_log
        self._clock = clock
        self._limiter = trio.CapacityLimiter(1)
        self._send, self._receive = trio.open_memory_channel[_Waiter](queue)
        self._log: Log | None = None
        self._next_attempt = 0.0
        self.failed_because: str | None = None
        self.size = 0  # of the log, as of the last commit
        self.recovery: Recovery | None = None  # what the first opening cut off

    async def open(self) -> None:
        """Open the log for the first time. Errors: LogError, OSError (the gateway does not start)."""
        self._log = await trio.to_thread.run_sync(self._open_log, limiter=self._limiter)
        self.size, self.recovery = self._log.size, self._log.recovery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled. A commit under way is finished first: its waiters may be answered still."""
        task_status.started()
        while True:
            waiters = [await self._receive.receive()]
            while len(waiters) < MAX_BATCH:
                try:
                    waiters.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            await self._commit(waiters)

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
        return await trio.to_thread.run_sync(self._read, question, limiter=self._limiter)

    async def close(self) -> None:
        if self._log is not None:
            await trio.to_thread.run_sync(self._log.close, limiter=self._limiter)
            self._log = None

    async def _commit(self, waiters: Sequence[_Waiter]) -> None:
        try:
            commit = await self._in_worker([waiter.builder for waiter in waiters])
        except LogUnavailable as error:
            for waiter in waiters:
                waiter.tell(LogUnavailable(error.detail))
        except Exception as error:  # noqa: BLE001 - told to the waiter whose builder raised it
            # One builder is at fault (an entry too large, say): the others must not suffer for it.
            if len(waiters) == 1:
                waiters[0].tell(error)
                return
            for waiter in waiters:
                await self._commit([waiter])
        else:
            for waiter, index in zip(waiters, commit.first_index, strict=True):
                waiter.tell(Committed(index, commit))

    async def _in_worker(self, builders: Sequence[EntryBuilder]) -> Commit:
        # Not abandoned on cancellation: a thread left behind would use the log beside the next one.
        with trio.CancelScope(shield=True):
            commit = await trio.to_thread.run_sync(self._append, builders, limiter=self._limiter)
        return commit  # noqa: RET504 - inside, mypy thinks that the scope may swallow the return

    def _append(self, builders: Sequence[EntryBuilder]) -> Commit:
        usable = self._usable_log()
        try:
            commit = usable.append(builders)
        except (LogError, OSError) as error:
            raise self._failed(error) from error
        self.size = commit.size
        return commit

    def _read(self, question: Callable[[Log], Answer]) -> Answer:
        usable = self._usable_log()
        try:
            return question(usable)
        except (LogError, OSError) as error:
            raise self._failed(error) from error

    def _usable_log(self) -> Log:
        """The log, reopened if it failed before. In the worker thread."""
        if self._log is not None:
            return self._log
        if self._clock() < self._next_attempt:
            raise LogUnavailable(f"the audit log failed: {self.failed_because}")
        try:
            self._log = self._open_log()
        except (LogError, OSError) as error:
            raise self._failed(error) from error
        self.size = self._log.size
        self.failed_because = None
        log.warning("audit log reopened", size=self._log.size)
        return self._log

    def _failed(self, error: Exception) -> LogUnavailable:
        failed, self._log = self._log, None
        self._next_attempt = self._clock() + REOPEN_SECONDS
        self.failed_because = str(error)
        log.error("audit log failed: nothing is permitted until it recovers", error=str(error))
        if failed is not None:
            try:
                failed.close()
            except (LogError, OSError) as close_error:
                log.warning("closing the failed log failed, too", error=str(close_error))
        return LogUnavailable(f"the audit log failed: {error}")

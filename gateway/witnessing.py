"""Gets the log's checkpoints cosigned by witnesses, beside the commits: no admission waits for a witness by itself.

In rounds: the newest checkpoint, with the log's own ML-DSA-44 signature if it has such a key, goes to all witnesses at
once; what they answer is published beside the log (`DIR/cosigned`) and by the API. A round is due when the log has
grown, `interval_seconds` after the one before, or at once for a permit that shall carry cosignatures. A witness that
fails is asked again ever more slowly. A cosignature that becomes too old, and a witness that knows another history, go
on record once each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from audit.checkpoint import Checkpoint, LogVerifier, Note, open_checkpoint, read_note
from audit.cosignature import Algorithm, Cosignature, Cosigner, cosigners_of
from audit.errors import CheckpointError
from certs.files import write_atomically
from gateway.committer import Committer
from gateway.errors import GatewayError, LogUnavailable, NoCosignature
from gateway.log_watching import LogWatching
from gateway.recording import Event, Recorder
from gateway.witness_client import WitnessClient, WitnessDisagrees, WitnessFailed

MAX_BACKOFF_SECONDS: Final = 300.0
RESUBMIT_SECONDS: Final = 60.0  # without growth: a fresh time says that there was nothing to see

log = structlog.get_logger("gateway.witnessing")


@dataclass(frozen=True, slots=True)
class WitnessTerms:
    """`required`: cosignatures of so many witnesses that a permit must carry (0: none)."""

    interval_seconds: float
    request_seconds: float
    max_age_seconds: float
    required: int


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A checkpoint and all that was said about it so far."""

    note: Note
    log_lines: str
    cosignatures: tuple[Cosignature, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint:
        return self.note.checkpoint

    @property
    def text(self) -> str:
        return f"{self.note.body}\n{self.log_lines}{''.join(one.line for one in self.cosignatures)}"

    def text_within(self, limit_bytes: int) -> str:
        """The log's Ed25519 signature, and as many cosignatures as fit, the small ones first."""
        text = f"{self.note.body}\n{self.log_lines.splitlines(keepends=True)[0]}"
        for one in sorted(self.cosignatures, key=lambda each: each.algorithm is Algorithm.ML_DSA_44):
            if len((text + one.line).encode()) <= limit_bytes:
                text += one.line
        return text


@dataclass(slots=True)
class _Standing:
    """How one witness has done. Times are of the monotonic clock; `since`: when it failed first."""

    client: WitnessClient
    last_good: float
    failures: int = 0
    not_before: float = 0.0
    alarm: str | None = None
    last_error: str | None = None


@dataclass(slots=True)
class Witnessing:
    """`ml_dsa` is the log's own second key, under the log's origin."""

    committer: Committer
    recorder: Recorder
    clients: Sequence[WitnessClient]
    terms: WitnessTerms
    published_file: Path
    watching: LogWatching
    log_key: LogVerifier
    ml_dsa: Cosigner | None = None
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    latest: Cosigned | None = None  # of the round under way: cosignatures may still come
    published: Cosigned | None = None
    _standings: list[_Standing] = field(default_factory=list)
    _urged: trio.Event = field(default_factory=trio.Event)
    _news: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        now = self.clock()
        self._standings = [_Standing(client, now) for client in self.clients]

    async def run(self) -> None:
        """Rounds until cancelled."""
        last_round = float("-inf")
        while True:
            due = self.latest is None or self.committer.size > self.latest.checkpoint.size or self._urged.is_set()
            if due or self.clock() - last_round >= RESUBMIT_SECONDS:
                self._urged = trio.Event()
                last_round = self.clock()
                await self._round()
            with trio.move_on_after(self.terms.interval_seconds):
                await self._urged.wait()

    async def covering(self, index: int) -> Cosigned:
        """A checkpoint over entry `index` with the required cosignatures. Errors: NoCosignature after a while."""
        with trio.move_on_after(2 * self.terms.request_seconds):
            while True:
                latest = self.latest
                if latest is not None and latest.checkpoint.size > index and self._is_sufficient(latest):
                    return latest
                self._urged.set()
                await self._news.wait()
        raise NoCosignature(f"of witnesses, fewer than {self.terms.required} cosigned the checkpoint in time")

    async def published_checkpoint(self) -> str:
        """For auditors: with cosignatures if there are witnesses, else the newest. Errors: LogUnavailable."""
        if self.published is not None and self._standings:
            return self.published.text
        text = await self.committer.read(lambda opened: opened.checkpoint_text)
        return text + (self.ml_dsa.cosign(read_note(text), int(self.wall())) if self.ml_dsa is not None else "")

    def ages(self) -> dict[str, int]:
        """Seconds since the last cosignature of each witness (or since the start), by name."""
        now = self.clock()
        return {one.client.name: int(now - one.last_good) for one in self._standings}

    async def _round(self) -> None:
        try:
            text = await self.committer.read(lambda opened: opened.checkpoint_text)
        except LogUnavailable:
            return
        note = read_note(text)
        log_lines = text[len(note.body) + 1 :]
        if self.ml_dsa is not None:
            log_lines += self.ml_dsa.cosign(note, int(self.wall()))
        cosigned = Cosigned(note, log_lines)
        self.latest = cosigned
        async with trio.open_nursery() as nursery:
            for standing in self._standings:
                if standing.not_before <= self.clock():
                    nursery.start_soon(self._ask, standing, cosigned)
        await self._raise_alarms()
        if self.latest.cosignatures or not self._standings:
            await self._publish(self.latest)

    async def _ask(self, standing: _Standing, cosigned: Cosigned) -> None:
        text = cosigned.text
        try:
            with trio.fail_after(self.terms.request_seconds):
                found = await standing.client.cosign(text, self._consistency_path)
        except (WitnessFailed, trio.TooSlowError, GatewayError) as error:
            await self._note_failure(standing, error)
            return
        standing.failures, standing.not_before, standing.last_error = 0, 0.0, None
        standing.last_good = self.clock()
        assert self.latest is not None
        self.latest = Cosigned(cosigned.note, cosigned.log_lines, (*self.latest.cosignatures, *found))
        news, self._news = self._news, trio.Event()
        news.set()
        if standing.alarm is not None:
            standing.alarm = None
            await self._record("witness.recovered", {"witness": standing.client.name})

    async def _note_failure(self, standing: _Standing, error: Exception) -> None:
        standing.failures += 1
        wait = self.terms.interval_seconds * 2 ** min(standing.failures, 16)
        standing.not_before = self.clock() + min(MAX_BACKOFF_SECONDS, wait)
        standing.last_error = str(error) or "it did not answer in time"
        log.warning("no cosignature", witness=standing.client.name, error=standing.last_error)
        if isinstance(error, WitnessDisagrees) and standing.alarm != "disagrees":
            standing.alarm = "disagrees"
            await self._look_into(standing)

    async def _look_into(self, standing: _Standing) -> None:
        """A witness knows another history. Its word alone proves nothing; a checkpoint under our key does.

        Proven: the log was put back, or somebody else signs with its key. The record says so, and then the log is shut
        until what it holds continues that checkpoint, or an operator decides otherwise.
        """
        client = standing.client
        other = await self._other_checkpoint(client)
        details = {"witness": client.name, "because": standing.last_error, "checkpoint": other[0] if other else None}
        log.error("a witness holds another history of this log", witness=client.name, proven=other is not None)
        await self._record("witness.disagrees", details)
        if other is not None:
            self.watching.require(other[1])
            await self.committer.distrust(
                f"the witness {client.name} holds a checkpoint under this log's key that it does not continue: "
                "the log was put back to an older state, or another gateway has its key"
            )

    async def _other_checkpoint(self, client: WitnessClient) -> tuple[str, Checkpoint] | None:
        """What the witness cosigned last, if our key signed it and this log does not continue it."""
        try:
            with trio.fail_after(self.terms.request_seconds):
                text = await client.latest(self.log_key.origin)
            other = open_checkpoint(text, [self.log_key])
            size, root = await self.committer.read(
                lambda opened: (opened.size, opened.root_at(min(other.size, opened.size)))
            )
        except (WitnessFailed, trio.TooSlowError, CheckpointError, LogUnavailable):
            return None
        return (text, other) if other.size > size or other.root != root else None

    async def _raise_alarms(self) -> None:
        for one in self._standings:
            age = self.clock() - one.last_good
            if one.alarm is None and age > self.terms.max_age_seconds:
                one.alarm = "silent"
                details = {"witness": one.client.name, "because": one.last_error, "age_seconds": int(age)}
                await self._record("witness.silent", details)

    async def _publish(self, cosigned: Cosigned) -> None:
        try:
            await trio.to_thread.run_sync(write_atomically, self.published_file, cosigned.text.encode())
        except OSError as error:
            log.warning("cannot write the cosigned checkpoint", file=str(self.published_file), error=str(error))
        self.published = cosigned

    async def _consistency_path(self, old_size: int, new_size: int) -> Sequence[bytes]:
        return await self.committer.read(lambda opened: opened.consistency_path(old_size, new_size))

    async def _record(self, kind: str, details: dict[str, Any]) -> None:
        try:
            await self.recorder.append(Event(kind, details=details))
        except GatewayError as error:
            log.warning("could not be recorded", kind=kind, error=error.detail)

    def _is_sufficient(self, cosigned: Cosigned) -> bool:
        return len(cosigners_of(cosigned.cosignatures)) >= self.terms.required

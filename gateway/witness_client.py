"""One witness, as the gateway asks it: C2SP tlog-witness `add-checkpoint` over HTTPS."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx

from audit.checkpoint import read_note
from audit.cosignature import Cosignature, CosignerKey, read_answer
from audit.errors import CheckpointError
from audit.witness import write_request
from policy.sources.https import read_bounded

MAX_ANSWER_BYTES: Final = 32 * 1024
_SIZE: Final = re.compile(r"(0|[1-9][0-9]{0,18})\n?")

ConsistencyPath = Callable[[int, int], Awaitable[Sequence[bytes]]]


class WitnessFailed(Exception):
    """It gave no cosignature this time: unreachable, refused, or an answer that does not verify."""


class WitnessDisagrees(WitnessFailed):
    """It has cosigned what this log does not hold: the log was put back, forked, or another gateway has its key."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    text: str


@dataclass(slots=True)
class WitnessClient:
    """`known_size`: of the checkpoint that the witness cosigned last, as far as we know; it corrects us."""

    name: str
    url: str
    keys: tuple[CosignerKey, ...]
    http: httpx.AsyncClient = field(repr=False)
    known_size: int = 0

    async def cosign(self, checkpoint_text: str, consistency_path: ConsistencyPath) -> list[Cosignature]:
        """Its cosignatures on the checkpoint. Errors: WitnessFailed, WitnessDisagrees, LogUnavailable."""
        note = read_note(checkpoint_text)
        size = note.checkpoint.size
        for _ in range(2):  # the second time with the size that it told
            answer = await self._ask(checkpoint_text, await self._path_to(size, consistency_path))
            if answer.status == 409:
                self.known_size = _told_size(answer)
                continue
            if answer.status == 422:
                raise WitnessDisagrees(f"it holds another history of this log: {answer.text[:200].strip()}")
            if answer.status != 200:
                raise WitnessFailed(f"it answered {answer.status}: {answer.text[:200].strip()}")
            try:
                found = read_answer(note, answer.text, self.keys)
            except CheckpointError as error:
                raise WitnessFailed(f"its cosignature does not verify: {error}") from error
            if not found:
                raise WitnessFailed("it signed with no key that is pinned here")
            self.known_size = size
            return found
        raise WitnessFailed("somebody else submits checkpoints of this log at the same time")

    async def latest(self, origin: str) -> str:
        """The checkpoint of the log that it cosigned last, as it serves it to monitors. Errors: WitnessFailed."""
        origin_hash = hashlib.sha256(origin.encode()).hexdigest()
        answer = await self._fetch("GET", f"{self.url}/{origin_hash}/checkpoint", b"")
        if answer.status != 200:
            raise WitnessFailed(f"it answered {answer.status}")
        return answer.text

    async def _path_to(self, size: int, consistency_path: ConsistencyPath) -> Sequence[bytes]:
        if self.known_size > size:
            told, self.known_size = self.known_size, 0  # the next time it is asked anew: this may have been a slip
            raise WitnessDisagrees(f"it has cosigned this log at size {told}, and it has {size} entries now")
        if self.known_size in {0, size}:
            return ()
        return await consistency_path(self.known_size, size)

    async def _ask(self, checkpoint_text: str, path: Sequence[bytes]) -> _Answer:
        body = write_request(self.known_size, path, checkpoint_text)
        return await self._fetch("POST", f"{self.url}/add-checkpoint", body)

    async def _fetch(self, method: str, url: str, body: bytes) -> _Answer:
        """Neither unpacked nor decoded as its headers would have it: they are the witness's to write, too."""
        try:
            async with self.http.stream(method, url, content=body, headers={"accept-encoding": "identity"}) as answer:
                content = await read_bounded(answer, MAX_ANSWER_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WitnessFailed(f"it cannot be reached: {error or type(error).__name__}") from error
        if len(content) > MAX_ANSWER_BYTES:
            raise WitnessFailed("its answer is too large")
        return _Answer(answer.status_code, content.decode("utf-8", "replace"))


def _told_size(answer: _Answer) -> int:
    match = _SIZE.fullmatch(answer.text)
    if match is None:
        raise WitnessFailed("it answered 409 without the size that it knows")
    return int(match[1])

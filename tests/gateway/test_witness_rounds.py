"""What the gateway makes of its witnesses' answers, round by round and without a network: alarms, back-off, enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import Checkpoint, read_note, sign_checkpoint
from audit.cosignature import Cosignature, Cosigner, read_answer
from gateway.errors import NoCosignature
from gateway.recording import Event
from gateway.witness_client import WitnessDisagrees, WitnessFailed
from gateway.witnessing import MAX_BACKOFF_SECONDS, Witnessing, WitnessTerms
from tests.audit.samples import ORIGIN, SIGNER

NOW = 1_764_100_000


class Witness:
    """Answers at once, fails, or hangs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known_size = 0
        self.asked = 0
        self.fault: Exception | None = None
        self.hangs = False
        self.claim: str | None = None
        self._cosigner = Cosigner(name, Ed25519PrivateKey.generate())

    async def cosign(self, text: str, _path: object) -> list[Cosignature]:
        self.asked += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.fault is not None:
            raise self.fault
        note = read_note(text)
        return read_answer(note, self._cosigner.cosign(note, NOW), [self._cosigner.key])

    async def latest(self, _origin: str) -> str:
        if self.claim is None:
            raise WitnessFailed("it answered 404")
        return self.claim


class Log:
    """As much of a committer, a recorder and a watch as witnessing uses."""

    def __init__(self) -> None:
        self.size = 3
        self.events: list[Event] = []
        self.distrusted: str | None = None
        self.required: Checkpoint | None = None

    @property
    def checkpoint_text(self) -> str:
        return sign_checkpoint(Checkpoint(ORIGIN, self.size, bytes(32)), SIGNER)

    def root_at(self, _size: int) -> bytes:
        return bytes(32)

    async def read(self, question: Callable[[Any], Any]) -> Any:
        return question(self)

    async def append(self, event: Event) -> None:
        self.events.append(event)

    async def distrust(self, because: str) -> None:
        self.distrusted = because

    def require(self, known: Checkpoint) -> None:
        self.required = known


class Site:
    def __init__(self, folder: Path, witnesses: Sequence[Witness], required: int = 0) -> None:
        self.log = Log()
        self.now = 1000.0
        terms = WitnessTerms(interval_seconds=10, request_seconds=0.2, max_age_seconds=60, required=required)
        self.witnessing = Witnessing(
            committer=self.log,  # type: ignore[arg-type]
            recorder=self.log,  # type: ignore[arg-type]
            watching=self.log,  # type: ignore[arg-type]
            clients=witnesses,  # type: ignore[arg-type]
            terms=terms,
            published_file=folder / "cosigned",
            log_key=SIGNER.verifier,
            wall=lambda: NOW,
            clock=lambda: self.now,
        )

    async def round(self, seconds: float = 0) -> list[str]:
        """One round after `seconds`; the kinds of all that is on record since."""
        self.now += seconds
        before = len(self.log.events)
        await self.witnessing._round()
        return [event.kind for event in self.log.events[before:]]


@pytest.fixture
def one() -> Witness:
    return Witness("w.example/1")


@pytest.fixture
def two() -> Witness:
    return Witness("w.example/2")


async def test_a_silent_witness_is_on_record_once_and_again_when_it_is_back(one: Witness, tmp_path: Path) -> None:
    site = Site(tmp_path, [one])
    one.fault = WitnessFailed("it cannot be reached")
    assert await site.round() == []
    assert await site.round(61) == ["witness.silent"]
    assert site.log.events[-1].details == {
        "witness": "w.example/1",
        "because": "it cannot be reached",
        "age_seconds": 61,
    }
    assert await site.round(400) == []
    assert site.witnessing.ages() == {"w.example/1": 461}
    one.fault = None
    assert await site.round(400) == ["witness.recovered"]
    assert site.witnessing.ages() == {"w.example/1": 0}


async def test_a_witness_that_fails_is_asked_ever_more_slowly_and_the_others_are_not(
    one: Witness, two: Witness, tmp_path: Path
) -> None:
    site = Site(tmp_path, [one, two])
    one.fault = WitnessFailed("down")
    for _ in range(200):
        await site.round(10)
    assert two.asked == 200
    assert 5 < one.asked < 15
    assert MAX_BACKOFF_SECONDS == 300


async def test_a_witness_that_hangs_holds_up_nobody_beyond_its_deadline(
    one: Witness, two: Witness, tmp_path: Path
) -> None:
    site = Site(tmp_path, [one, two], required=1)
    one.hangs = True
    with trio.fail_after(5):
        await site.round()
    published = site.witnessing.published
    assert published is not None
    assert [each.name for each in published.cosignatures] == ["w.example/2"]
    assert (tmp_path / "cosigned").read_text() == published.text
    assert (await site.witnessing.covering(2)).checkpoint.size == 3


async def test_two_required_witnesses_are_two_names(one: Witness, two: Witness, tmp_path: Path) -> None:
    site = Site(tmp_path, [one, two], required=2)
    two.fault = WitnessFailed("down")
    await site.round()
    with pytest.raises(NoCosignature, match="fewer than 2"):
        await site.witnessing.covering(2)
    two.fault = None
    await site.round(1000)
    assert (await site.witnessing.covering(2)).checkpoint.size == 3


async def test_a_checkpoint_that_does_not_cover_the_entry_is_not_enough(one: Witness, tmp_path: Path) -> None:
    site = Site(tmp_path, [one], required=1)
    await site.round()
    with pytest.raises(NoCosignature):
        await site.witnessing.covering(3)
    site.log.size = 4
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.witnessing.run)
        with trio.fail_after(5):
            assert (await site.witnessing.covering(3)).checkpoint.size == 4  # it asked for a round itself
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("claim", "proven"),
    [
        (None, False),  # it only says so
        (sign_checkpoint(Checkpoint(ORIGIN, 2, bytes(32)), SIGNER), False),  # what the log continues
        (sign_checkpoint(Checkpoint(ORIGIN, 9, bytes(32)), SIGNER), True),  # longer than the log is
        (sign_checkpoint(Checkpoint(ORIGIN, 3, b"x" * 32), SIGNER), True),  # another root
        ("forged", False),
    ],
)
async def test_a_witness_that_disagrees_is_believed_only_with_a_checkpoint_under_the_logs_own_key(
    one: Witness, tmp_path: Path, claim: str | None, proven: bool
) -> None:
    site = Site(tmp_path, [one])
    one.fault, one.claim = WitnessDisagrees("it has cosigned this log at size 9"), claim
    assert await site.round() == ["witness.disagrees"]
    assert (site.log.distrusted is not None) == (site.log.required is not None) == proven
    assert (site.log.events[-1].details["checkpoint"] is not None) == proven
    assert await site.round(1000) == []  # once

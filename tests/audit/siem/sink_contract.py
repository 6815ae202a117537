"""What every sink must do, whatever it speaks. `test_sinks.py` runs it with each; a receiver is made by a `Receiver`.

A test asks the receiver what it holds, never the sink what it sent.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import trio

from audit.siem.document import Document, document_of
from audit.siem.shipper import Shipper
from audit.siem.sink import Refusal, Sink, SinkAway
from audit.siem.status import SinkEvent, Terms
from tests.audit.siem.entries import FakeLog, log_entry

DEADLINE = 30.0
POISON = "POISON-b1946ac9"


class Receiver(Protocol):
    """One kind of receiver, and the sink that delivers to it."""

    def sink(self) -> Sink:
        """A new sink, as after a restart of ours."""

    def start(self) -> None: ...

    def kill(self) -> None:
        """With SIGKILL, or what comes nearest."""

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def held(self) -> list[str]:
        """The event ids that it holds, in its own order, each as often as it holds it."""

    def secrets(self) -> list[str]:
        """What must never be shown."""


def documents(start: int, end: int) -> list[Document]:
    return [document_of(log_entry(index)) for index in range(start, end)]


async def delivered(sink: Sink, batch: Sequence[Document]) -> Sequence[Refusal]:
    with trio.fail_after(DEADLINE):
        return await sink.deliver(batch)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.01)


async def arrives_in_order(receiver: Receiver) -> None:
    sink = receiver.sink()
    for start in range(0, 60, 20):
        assert await delivered(sink, documents(start, start + 20)) == []
    await sink.close()
    expected = [each.id for each in documents(0, 60)]
    await until(lambda: len(receiver.held()) >= 60)
    assert receiver.held() == expected


async def is_away_while_it_is_down_and_delivers_when_it_is_back(receiver: Receiver) -> None:
    sink, batch = receiver.sink(), documents(0, 3)
    receiver.kill()
    for _ in range(2):
        assert await cause_of_refusal(sink, batch) is not None
    receiver.start()
    assert await delivered(sink, batch) == []
    await until(lambda: set(receiver.held()) == {each.id for each in batch})
    await sink.close()


async def survives_a_restart_between_two_batches(receiver: Receiver) -> None:
    """The connection that it kept is dead, and it finds out without losing what is sent next."""
    sink = receiver.sink()
    await delivered(sink, documents(0, 3))
    await until(lambda: len(receiver.held()) == 3)
    receiver.kill()
    receiver.start()
    await retried(sink, documents(3, 6))
    await until(lambda: set(receiver.held()) == {each.id for each in documents(0, 6)})
    await sink.close()


async def a_frozen_receiver_costs_a_deadline_and_no_entry(receiver: Receiver) -> None:
    sink, batch = receiver.sink(), documents(0, 400)
    await delivered(sink, documents(400, 401))
    receiver.freeze()
    try:
        with trio.move_on_after(0.3):
            # What the kernel takes for a frozen program counts for syslog: it has no other answer.
            await sink.deliver(batch)
    finally:
        receiver.thaw()
    await retried(sink, batch)
    await until(lambda: set(receiver.held()) == {each.id for each in documents(0, 401)})
    await sink.close()


async def cancelled_anywhere_it_sends_no_half_entry(receiver: Receiver, rounds: int, seed: int) -> None:
    """As when our own process dies: a new sink follows, and delivers from the cursor on."""
    chance = random.Random(seed)
    batch = documents(0, 200)
    for _ in range(rounds):
        sink = receiver.sink()
        with trio.move_on_after(chance.uniform(0, 0.05)), suppress(SinkAway):
            await sink.deliver(batch)  # away where the last one's thread is at its write still
        with trio.move_on_after(0):  # not in good order: a process that is killed says no goodbye
            await sink.close()
    sink = receiver.sink()
    await retried(sink, batch)
    await sink.close()
    await until(lambda: set(receiver.held()) == {each.id for each in batch})


async def two_at_once_do_not_mix(receiver: Receiver) -> None:
    """`sealane siem resend` delivers beside the shipper, over the same sink."""
    sink = receiver.sink()
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            for start in range(0, 200, 50):
                nursery.start_soon(sink.deliver, documents(start, start + 50))
    await sink.close()
    await until(lambda: len(receiver.held()) >= 200)
    assert sorted(receiver.held()) == sorted(each.id for each in documents(0, 200))


async def one_that_is_refused_does_not_stop_the_others(receiver: Receiver) -> None:
    """For receivers that can refuse one entry: the harness refuses what holds POISON."""
    sink = receiver.sink()
    batch = [document_of(log_entry(index, reason=POISON if index == 4 else None)) for index in range(8)]
    refusals: Sequence[Refusal] = ()
    for _ in range(5):
        try:
            refusals = await delivered(sink, batch)
            break
        except SinkAway:
            continue
    assert [each.index for each in refusals] == [4]
    await sink.close()
    assert set(receiver.held()) == {each.id for each in batch if each.index != 4}


async def killed_at_random_it_misses_nothing(
    receiver: Receiver,
    folder: Path,
    kills: int,
    seed: int,
    pause: Callable[[float], Awaitable[None]] = trio.sleep,
    *,
    restart_seconds: float = 1.0,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[str]:
    """The real shipper, a log that grows, a receiver that is killed and started again; what it lacks in the end.

    `goes_on`: asked before each kill; the rest is delivered and compared in any case.
    """
    chance = random.Random(seed)
    log = FakeLog(200)
    shipper = shipper_of(receiver, log, folder)
    with trio.fail_after(DEADLINE + kills * restart_seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shipper.run)
            for _ in range(kills):
                if not goes_on():
                    break
                await pause(chance.uniform(0.01, 0.08))
                receiver.kill()
                log.grow(100)
                await trio.to_thread.run_sync(receiver.start)
            while shipper.status.lag:
                await trio.sleep(0.01)
            wanted = {each.id for each in documents(0, log.size)}
            with trio.move_on_after(5):
                while not wanted <= set(receiver.held()):
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    held = receiver.held()
    assert set(held) <= wanted, "it holds what no entry accounts for"
    return sorted(wanted - set(held))


def shipper_of(receiver: Receiver, log: FakeLog, folder: Path) -> Shipper:
    """As after a start of the gateway: a new sink, and the cursor in `folder`."""
    return Shipper(receiver.sink(), log, folder, _replace, _tell, _terms(), document_of)


async def says_what_is_wrong_and_no_secret(receiver: Receiver) -> None:
    sink = receiver.sink()
    receiver.kill()
    cause = await cause_of_refusal(sink, documents(0, 1))
    assert cause is not None
    assert cause.isprintable()
    for secret in receiver.secrets():
        assert secret not in cause
        assert secret not in repr(sink)
        assert secret not in str(vars(sink))
    receiver.start()
    await sink.close()


async def retried(sink: Sink, batch: Sequence[Document]) -> None:
    """As the shipper does it, without its pauses."""
    with trio.fail_after(DEADLINE):
        while True:
            try:
                with trio.fail_after(5):
                    assert await sink.deliver(batch) == []
                return
            except (SinkAway, trio.TooSlowError):
                await trio.sleep(0.05)


async def cause_of_refusal(sink: Sink, batch: Sequence[Document]) -> str | None:
    try:
        await delivered(sink, batch)
    except SinkAway as away:
        return str(away)
    return None


def _terms() -> Terms:
    return Terms(batch_entries=50, deadline_seconds=5, longest_pause_seconds=0.1, poll_seconds=0.01)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.replace(path)


async def _tell(_event: SinkEvent) -> None:
    """These tests look at the receiver."""

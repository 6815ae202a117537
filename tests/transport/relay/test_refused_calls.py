"""Refused calls on their way to the gateway: counted, bounded, nobody's pushed out by another, told until taken."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
import trio
import trio.testing

from tests.transport.libvirt_rpc.samples import VM, call
from transport.libvirt_rpc.xdr import XdrWriter
from transport.relay.gateway_answers import GatewayAway, GatewayRefuses
from transport.relay.refusal_telling import tell_refused_calls
from transport.relay.refused_calls import MAX_CAUSE, MAX_WAITING, PART, RefusedCalls, refused_call, vm_named

DESTROY = call(12, bytes(XdrWriter().text("web").data) + UUID(VM).bytes + b"\0\0\0\1")


def test_a_flood_is_one_entry_with_its_count() -> None:
    times = iter(range(10_000))
    queue = RefusedCalls(lambda: float(next(times)))
    for pid in range(1000):
        queue.note(refused_call("source", "b", "no", DESTROY, uid=1), pid)
    (refused,) = queue.take().body("e" * 32, 1, 1000.0)["refusals"]
    assert (refused["count"], refused["first_ms_ago"], refused["last_ms_ago"]) == (1000, 1_000_000, 1000)
    assert (refused["vm"], refused["vm_name"], refused["procedure_name"]) == (VM, "web", "domain_destroy")
    assert (refused["uid"], refused["pid"]) == (1, 999)
    assert queue.take().entries == []


def test_who_tries_many_things_pushes_out_only_their_own() -> None:
    queue = RefusedCalls()
    queue.note(refused_call("source", "b", "quiet", uid=7))
    for number in range(MAX_WAITING + 50):
        queue.note(refused_call("source", "b", f"loud {number}", uid=8))
    first = queue.take()
    assert first.entries[0][0].uid == 7
    assert first.lost == 51
    kept = len(first.entries)
    while entries := queue.take().entries:
        assert len(entries) <= PART
        kept += len(entries)
    assert kept == MAX_WAITING


def test_nor_does_who_tries_many_destinations() -> None:
    queue = RefusedCalls()
    queue.note(refused_call("source", "b", "quiet", uid=7))
    for number in range(MAX_WAITING + 50):
        queue.note(refused_call("source", f"h{number}", "loud", uid=8))
    assert queue.take().entries[0][0].uid == 7


def test_what_a_caller_chose_is_short_and_plain() -> None:
    refused = refused_call("source", "b", "x\n\x1b[2J\u202e" + "y" * 999)
    assert refused.cause.startswith("x??[2J?y")
    assert len(refused.cause) == MAX_CAUSE
    assert vm_named(call(23, bytes(XdrWriter().text("a\nb").data))) == (None, None)
    assert vm_named(call(23, b"\xff" * 8)) == (None, None)
    assert vm_named(call(9999, DESTROY.body)) == (None, None)
    assert vm_named(call(24, UUID(VM).bytes)) == (VM, None)


@pytest.mark.parametrize(("error", "told", "lost"), [(GatewayAway("away"), 3, 0), (GatewayRefuses("no", 400), 2, 1)])
async def test_a_report_is_told_until_it_is_taken_or_counted_as_lost(
    error: Exception, told: int, lost: int, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock is not None
    queue, bodies = RefusedCalls(), []

    async def post(body: bytes) -> None:
        bodies.append(msgspec.json.decode(body))
        if len(bodies) == 1:
            queue.note(refused_call("source", "b", "second"))
            raise error
        await trio.lowlevel.checkpoint()

    queue.note(refused_call("source", "b", "first"))
    with trio.move_on_after(30):
        await tell_refused_calls(queue, post)
    assert len(bodies) == told
    assert bodies[-1]["refusals"][0]["cause"] == "second"
    assert bodies[-1]["lost"] == lost
    assert [each["sequence"] for each in bodies] == [1, 1, 2][-told:] if told == 3 else [1, 2]

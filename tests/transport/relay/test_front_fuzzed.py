"""A front that is sent anything at all: calls that are cut, turned, swapped or made up, in any pieces.

Whatever comes, the front answers well-formed replies to calls that were made, or ends this caller's connection; it
asks the gateway only about a VM that a whole Prepare names, finds no bug in itself, and serves the next caller.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.transport.libvirt_rpc.samples import LIVE, call, cookie, finish_call, prepare, prepare_call, text, xml
from tests.transport.relay.test_front import OPEN, Stage, ask, front
from transport.libvirt_rpc.framing import (
    KEEPALIVE_PROGRAM,
    PING,
    REMOTE_PROGRAM,
    MessageType,
    Packet,
    PacketReader,
    Status,
)
from transport.libvirt_rpc.opening import feature_call
from transport.libvirt_rpc.procedures import Feature, MigrateFlag, Procedure

GOOD = (
    OPEN,
    PING,
    call(Procedure.AUTH_LIST),
    call(Procedure.CONNECT_SUPPORTS_FEATURE, feature_call(Feature.MIGRATION_PARAMS)),
    call(Procedure.CONNECT_GET_LIB_VERSION),
    prepare_call(),
    prepare_call(prepare(text("migrate_uri", "tcp:127.77.0.2"), flags=LIVE | MigrateFlag.NON_SHARED_DISK)),
    prepare_call(prepare(dom=xml(more="<memoryBacking/>"), data=cookie(more="<nbd port='1'/>"))),
    finish_call(),
)


@st.composite
def sent(draw: st.DrawFn) -> bytes:
    """One packet: a good one, one with something wrong in it, or made up."""
    data = bytearray(draw(st.sampled_from(GOOD)).encode())
    match draw(st.sampled_from(["whole", "bits", "word", "cut", "longer", "made up", "noise"])):
        case "bits":
            for at in draw(st.lists(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=8)):
                data[at // 8] ^= 1 << at % 8
        case "word":  # lengths, counts, types and discriminators are words
            at = 4 * draw(st.integers(0, len(data) // 4 - 1))
            data[at : at + 4] = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])).to_bytes(4, "big")
        case "cut":
            del data[draw(st.integers(28, len(data))) :]
            data[:4] = len(data).to_bytes(4, "big")
        case "longer":
            data += draw(st.binary(min_size=1, max_size=64))
            data[:4] = len(data).to_bytes(4, "big")
        case "made up":
            program = draw(st.sampled_from([REMOTE_PROGRAM, KEEPALIVE_PROGRAM]))
            kind, status = draw(st.sampled_from(MessageType)), draw(st.sampled_from(Status))
            number, body = draw(st.integers(0, 500)), draw(st.binary(max_size=80))
            data = bytearray(Packet(program, number, kind, 1, status, body).encode())
        case "noise":
            data = bytearray(draw(st.binary(max_size=200)))
    return bytes(data)


async def _tell(stage: Stage, pieces: list[bytes]) -> list[Packet]:
    """What the front answers, until it or we end the connection."""
    reader, replies = PacketReader(), list[Packet]()
    stream = await trio.open_unix_socket(str(stage.path))
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                for piece in pieces:
                    await stream.send_all(piece)
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass  # the front has ended it

        nursery.start_soon(send)
        try:
            while data := await stream.receive_some(65536):
                replies += reader.feed(bytes(data))
        except trio.BrokenResourceError:
            pass
    assert reader.is_between_packets
    return replies


@settings(deadline=None, max_examples=60)
@given(st.lists(sent(), min_size=1, max_size=6), st.lists(st.integers(1, 400), max_size=12))
def test_whatever_a_caller_sends_the_front_stands(packets: list[bytes], cuts: list[int]) -> None:
    data, pieces = b"".join(packets), []
    for size in [*cuts, len(data)]:
        pieces.append(data[:size])
        data = data[size:]

    async def scene() -> None:
        with tempfile.TemporaryDirectory(prefix="slz") as folder, trio.fail_after(30):
            async with front(Path(folder)) as stage:
                replies = await _tell(stage, [piece for piece in pieces if piece])
                for reply in replies:
                    assert reply.is_keepalive or reply.type is MessageType.REPLY
                    assert "internal error" not in str(reply.body)
                assert all(wish.vm.encode() in b"".join(packets) for wish in stage.wishes)
                assert len(await ask(stage, OPEN)) == 1

    with capture_logs() as said:
        trio.run(scene)
    assert not [line for line in said if "bug" in line["event"]]

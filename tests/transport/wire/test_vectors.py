"""docs/wire-vectors.json is what this code makes, and this code refuses what the file says is refused."""

from __future__ import annotations

import pytest

from tests.transport.wire.vectors import FILE, text, vectors
from transport.errors import ProtocolViolation
from transport.wire.frames import HEADER_BYTES, LaneOpener
from transport.wire.keys import ConnectionKeys, Direction
from transport.wire.messages import MessageReader
from transport.wire.preface import authenticate_preface, read_preface

MADE = vectors()


def test_the_file_is_what_this_code_makes() -> None:
    assert FILE.read_text() == text(), "run python -m tests.transport.wire.vectors, and say in the CHANGELOG why"


@pytest.mark.parametrize("case", MADE["refused_frames"], ids=lambda case: case["why"])
def test_a_refused_frame_is_refused(case: dict[str, str]) -> None:
    opener = LaneOpener(ConnectionKeys(bytes.fromhex(case["secret"])).lane_secret(0, Direction(0)))
    wire = memoryview(bytes.fromhex(case["wire"]))
    with pytest.raises(ProtocolViolation):
        while wire:
            body = opener.header(wire[:HEADER_BYTES])
            end = HEADER_BYTES + body
            opener.open_into(wire[:HEADER_BYTES], wire[HEADER_BYTES:end], memoryview(bytearray(body)))
            wire = wire[end:]


@pytest.mark.parametrize("case", MADE["refused_prefaces"], ids=lambda case: case["why"])
def test_a_refused_preface_is_refused(case: dict[str, str]) -> None:
    keys = ConnectionKeys(bytes.fromhex(case["secret"]))
    with pytest.raises(ProtocolViolation):
        preface = read_preface(bytes.fromhex(case["wire"]))
        assert preface.connection_id == keys.connection_id or case["why"] == "another connection"
        authenticate_preface(preface, keys)


@pytest.mark.parametrize("case", MADE["refused_messages"], ids=lambda case: case["why"])
def test_a_refused_message_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(ProtocolViolation):
        MessageReader().feed(bytes.fromhex(case["wire"]))

"""docs/wire-vectors.json is what this code makes, and this code refuses what the file says is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from policy.permit import proof_entry
from tests.transport.wire.message_vectors import MESSAGES, SPELLED
from tests.transport.wire.permit_vectors import DESK
from tests.transport.wire.vectors import FILE, text, vectors
from transport.errors import OfferRefused, ProtocolViolation
from transport.wire.clear_frames import ClearOpener
from transport.wire.control import ControlOrder, Role
from transport.wire.frames import HEADER_BYTES, LaneOpener
from transport.wire.keys import ConnectionKeys, Direction
from transport.wire.messages import MessageReader
from transport.wire.preface import authenticate_preface, read_preface

MADE = vectors()
PERMITS = MADE["permits"]


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


@pytest.mark.parametrize("case", MADE["messages"], ids=lambda case: case["wire"][:40])
def test_a_good_message_reads_as_it_should(case: dict[str, Any]) -> None:
    (message,) = MessageReader().feed(bytes.fromhex(case["wire"]))
    again = msgspec.json.encode(case["message"])
    assert MessageReader().feed(len(again).to_bytes(4) + again) == [message]
    assert message in (*MESSAGES, *SPELLED.values())


@pytest.mark.parametrize("case", MADE["refused_messages"], ids=lambda case: case["why"])
def test_a_refused_message_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(ProtocolViolation):
        MessageReader().feed(bytes.fromhex(case["wire"]))


@pytest.mark.parametrize("case", MADE["refused_clear_frames"], ids=lambda case: case["why"])
def test_a_refused_frame_of_a_lane_of_tls_is_refused(case: dict[str, str]) -> None:
    opener, wire = ClearOpener(), memoryview(bytes.fromhex(case["wire"]))
    with pytest.raises(ProtocolViolation):
        while wire:
            end = HEADER_BYTES + opener.header(wire[:HEADER_BYTES])
            opener.open_into(wire[:HEADER_BYTES], wire[HEADER_BYTES:end], memoryview(bytearray(end - HEADER_BYTES)))
            wire = wire[end:]


@pytest.mark.parametrize("case", MADE["permits"]["good"], ids=lambda case: case["leaf_hash"][:8])
def test_a_good_permit_is_good(case: dict[str, str]) -> None:
    permit = DESK.verify(case["permit"], source=PERMITS["source"], destination=PERMITS["destination"])
    assert proof_entry(permit).decode() == case["entry"]


@pytest.mark.parametrize("case", MADE["permits"]["refused"], ids=lambda case: case["why"])
def test_a_refused_permit_is_refused_by_its_code(case: dict[str, str]) -> None:
    with pytest.raises(OfferRefused) as refused:
        DESK.verify(case["permit"], source=PERMITS["source"], destination=PERMITS["destination"])
    assert refused.value.code.value == case["code"]


@pytest.mark.parametrize("case", MADE["refused_orders"], ids=lambda case: case["why"])
def test_a_refused_order_is_refused_at_its_last_message_by_whoever_gets_it(case: dict[str, Any]) -> None:
    orders = {role: ControlOrder(role) for role in Role}
    sent = {"0": 3}
    said = [(Role(each["from"]), bytes.fromhex(each["wire"])) for each in case["messages"]]
    for sender, wire in said[:-1]:
        (message,) = MessageReader().feed(wire)
        orders[sender].sent(message)
        orders[sender.peer].received(message, sent)
    sender, wire = said[-1]
    (message,) = MessageReader().feed(wire)
    with pytest.raises(ProtocolViolation):
        orders[sender.peer].received(message, sent)

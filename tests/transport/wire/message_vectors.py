"""Test vectors of control messages (docs/wire-protocol.md, section 2), a part of docs/wire-vectors.json."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from transport.errors import RefusalCode
from transport.hypervisors.moving import Movement
from transport.wire.control import Role
from transport.wire.messages import (
    Ack,
    Answer,
    Bye,
    Cancel,
    Handover,
    Message,
    Offer,
    Open,
    Outcome,
    Receipt,
    Refusal,
    encode_message,
)

SESSION = bytes(range(16))
PERMIT = "the.permit.text"


def offer(attempt: int, purpose: Any, **held: int) -> Offer:
    return Offer(1, purpose, (PERMIT,), SESSION.hex(), attempt, {name[1:]: count for name, count in held.items()})


MESSAGES: tuple[Message, ...] = (
    offer(0, "begin"),
    Answer({}, 16),
    Open(0, "memory"),
    Ack({"0": 3, "12": 4096}),
    Handover(),
    Outcome("running"),
    Cancel("deadline", "späť"),
    Bye(),
    Offer(1, "begin", (PERMIT, "another.permit.text"), SESSION.hex(), 0, {}, Movement(2, "zstd")),
    offer(0xFFFFFFFF, "settle"),
    offer(0, "recover"),
    offer(2, "resume", _0=1, _1=(1 << 62) - 1),
    Answer({"0": 0, "1": 7}, 256),
    Refusal(RefusalCode.BUSY, "\N{MUSICAL SYMBOL G CLEF}"),
    Open(255, "backup-1"),
    Handover(post_copy=True),
    Outcome("discarded"),
    Receipt("{}", "c2ln"),
)

# Good messages that no encoder of ours writes: the same members, otherwise spelled.
SPELLED: dict[bytes, Message] = {
    b' {\n"port":\t"memory" , "channel":0,\r"type":"open"}\n': Open(0, "memory"),
    b'{"\\u0074ype":"cancel","code":"a","reason":"\\u0041\\/\\ud834\\udd1e"}': Cancel(
        "a", "A/\N{MUSICAL SYMBOL G CLEF}"
    ),
    b'{"type":"handover","post_copy":false}': Handover(),
    b'{"type":"offer","protocol":1,"purpose":"begin","permits":["%s"],"session_id":"%s","attempt":0,"movement":{}}'
    % (PERMIT.encode(), SESSION.hex().encode()): msgspec.structs.replace(offer(0, "begin"), movement=Movement()),
    b'{"type":"cancel","code":"a","reason":"%s"}' % ("\N{MUSICAL SYMBOL G CLEF}" * 512).encode(): Cancel(
        "a", "\N{MUSICAL SYMBOL G CLEF}" * 512
    ),
}


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


def _offer(old: bytes, new: bytes) -> bytes:
    """A beginning in which one thing is another."""
    body = encode_message(offer(0, "begin"))[4:]
    assert old in body
    return _framed(body.replace(old, new))


def _moving(movement: bytes) -> bytes:
    return _offer(b'"next":{}', b'"next":{},"movement":{%s}' % movement)


REFUSED_MESSAGES = {
    "an unknown type": _framed(b'{"type":"hello"}'),
    "no type": _framed(b'{"channel":0,"port":"memory"}'),
    "an unknown member": _framed(b'{"type":"bye","x":1}'),
    "a member of other case": _framed(b'{"type":"ack","Written":{}}'),
    "a missing member": _framed(b'{"type":"answer","max_channels":1}'),
    "a wrong type of value": _framed(b'{"type":"open","channel":"0","port":"memory"}'),
    "a member twice": _framed(b'{"type":"outcome","outcome":"running","outcome":"discarded"}'),
    "the type twice": _framed(b'{"type":"bye","type":"bye"}'),
    "a channel twice": _framed(b'{"type":"ack","written":{"0":1,"0":2}}'),
    "half of a surrogate pair": _framed(b'{"type":"cancel","code":"a","reason":"\\ud83d"}'),
    "a number as a fraction": _framed(b'{"type":"open","channel":0.0,"port":"memory"}'),
    "a number with an exponent": _framed(b'{"type":"open","channel":1e0,"port":"memory"}'),
    "a channel number beyond 255": _framed(b'{"type":"ack","written":{"256":1}}'),
    "a number too large for a count": _framed(b'{"type":"ack","written":{"0":4611686018427387904}}'),
    "another version": _offer(b'"protocol":1', b'"protocol":2'),
    "an unknown purpose": _offer(b'"begin"', b'"resumed"'),
    "no permit": _offer(b'"the.permit.text"', b""),
    "a permit without a character": _offer(b'"the.permit.text"', b'""'),
    "three permits": _offer(b'"the.permit.text"', b'"a","b","c"'),
    "a session id in upper case": _offer(b"0a0b", b"0A0B"),
    "a session id of 31 digits": _offer(b"0a0b", b"0a0"),
    "a session id with a line feed behind it": _offer(b'0e0f"', b'0e0f\\n"'),
    "an attempt beyond 32 bits": _offer(b'"attempt":0', b'"attempt":4294967296'),
    "an attempt before the first": _offer(b'"attempt":0', b'"attempt":-1'),
    "null for what may be left out": _offer(b'"next":{}', b'"next":null'),
    "an unknown member of a movement": _moving(b'"x":1'),
    "a member of a movement twice": _moving(b'"xbzrle":true,"xbzrle":true'),
    "more than 64 channels of multifd": _moving(b'"multifd_channels":65'),
    "an unknown compression": _moving(b'"multifd_channels":1,"multifd_compression":"lz4"'),
    "a number for a boolean": _framed(b'{"type":"handover","post_copy":1}'),
    "a boolean for a number": _framed(b'{"type":"open","channel":false,"port":"memory"}'),
    "a type of other case": _framed(b'{"type":"Bye"}'),
    "the type twice, once escaped": _framed(b'{"type":"bye","\\u0074ype":"bye"}'),
    "the other half of a surrogate pair": _framed(b'{"type":"cancel","code":"a","reason":"\\ude00"}'),
    "halves of a surrogate pair the wrong way round": _framed(
        b'{"type":"cancel","code":"a","reason":"\\ude00\\ud83d"}'
    ),
    "half of a surrogate pair as bytes": _framed(b'{"type":"cancel","code":"a","reason":"\xed\xa0\xbd"}'),
    "a byte order mark": _framed(b'\xef\xbb\xbf{"type":"bye"}'),
    "minus zero": _framed(b'{"type":"open","channel":-0,"port":"memory"}'),
    "a zero in front": _framed(b'{"type":"open","channel":00,"port":"memory"}'),
    "no number": _framed(b'{"type":"open","channel":NaN,"port":"memory"}'),
    "more channels than there are": _framed(b'{"type":"answer","next":{},"max_channels":257}'),
    "an unknown code of refusal": _framed(b'{"type":"refusal","code":"permit_lost","message":""}'),
    "a message of 513 characters": _framed(b'{"type":"refusal","code":"busy","message":"' + b"x" * 513 + b'"}'),
    "no port": _framed(b'{"type":"open","channel":0,"port":""}'),
    "a port that begins with a digit": _framed(b'{"type":"open","channel":0,"port":"1st"}'),
    "a port with a capital": _framed(b'{"type":"open","channel":0,"port":"Memory"}'),
    "a port of 33 characters": _framed(b'{"type":"open","channel":0,"port":"' + b"x" * 33 + b'"}'),
    "a port with a line feed behind it": _framed(b'{"type":"open","channel":0,"port":"memory\\n"}'),
    "no code": _framed(b'{"type":"cancel","code":"","reason":""}'),
    "a code of 41 characters": _framed(b'{"type":"cancel","code":"' + b"x" * 41 + b'","reason":""}'),
    "a channel number with a line feed behind it": _framed(b'{"type":"ack","written":{"0\\n":1}}'),
    "a channel number with a sign": _framed(b'{"type":"ack","written":{"-0":1}}'),
    "a signature of 257 characters": _framed(b'{"type":"receipt","body":"{}","signature":"' + b"A" * 257 + b'"}'),
    "a port that ends in a hyphen": _framed(b'{"type":"open","channel":0,"port":"backup-"}'),
    "a code with a capital": _framed(b'{"type":"cancel","code":"A","reason":""}'),
    "no channel at all": _framed(b'{"type":"answer","next":{},"max_channels":0}'),
    "a reason of 513 characters": _framed(b'{"type":"cancel","code":"a","reason":"' + b"x" * 513 + b'"}'),
    "a number with a fraction": _framed(b'{"type":"open","channel":0.5,"port":"memory"}'),
    "a number out of range": _framed(b'{"type":"open","channel":256,"port":"memory"}'),
    "a negative count": _framed(b'{"type":"ack","written":{"0":-1}}'),
    "a channel number not in its one spelling": _framed(b'{"type":"ack","written":{"00":1}}'),
    "an unknown outcome": _framed(b'{"type":"outcome","outcome":"perhaps"}'),
    "not an object": _framed(b"[]"),
    "two objects": _framed(b'{"type":"bye"}{"type":"bye"}'),
    "not UTF-8": _framed(b'{"type":"cancel","code":"a","reason":"\xff"}'),
    "no JSON": _framed(b""),
    "more than 64 KiB": (65537).to_bytes(4),
}


def message_vectors() -> list[dict[str, Any]]:
    wires = [*map(encode_message, MESSAGES), *map(_framed, SPELLED)]
    return [{"message": json.loads(wire[4:]), "wire": wire.hex()} for wire in wires]


def refused_messages() -> list[dict[str, str]]:
    return [{"why": why, "wire": wire.hex()} for why, wire in REFUSED_MESSAGES.items()]


_SOURCE, _DESTINATION = Role.SOURCE, Role.DESTINATION
Said = list[tuple[Role, Message]]
_BEGUN: Said = [(_SOURCE, offer(0, "begin")), (_DESTINATION, Answer({}, 2))]
_OPENED: Said = [*_BEGUN, (_SOURCE, Open(0, "memory"))]
_HANDED_OVER: Said = [*_OPENED, (_SOURCE, Handover())]
# The last message of each is refused by whoever gets it; the others pass. Each end has sent three frames of channel 0.
REFUSED_ORDERS: dict[str, Said] = {
    "a channel before the answer": [(_SOURCE, offer(0, "begin")), (_SOURCE, Open(0, "memory"))],
    "a second answer": [*_BEGUN, (_DESTINATION, Answer({}, 2))],
    "a beginning that names channels": [(_SOURCE, offer(0, "begin", _0=0))],
    "a resumption that leaves a channel out": [(_SOURCE, offer(1, "resume", _0=0, _2=0))],
    "a settlement that names channels": [(_SOURCE, offer(1, "settle", _0=0))],
    "a recovery that names channels": [(_SOURCE, offer(0, "recover", _0=0))],
    "an offer of the destination's": [(_DESTINATION, offer(0, "begin"))],
    "an answer with a channel that was not offered": [
        (_SOURCE, offer(1, "resume", _0=0)),
        (_DESTINATION, Answer({"0": 0, "1": 0}, 2)),
    ],
    "an answer that leaves a channel out": [
        (_SOURCE, offer(1, "resume", _0=0, _1=0)),
        (_DESTINATION, Answer({"1": 0}, 2)),
    ],
    "a channel that goes on and is announced again": [
        (_SOURCE, offer(1, "resume", _0=0, _1=0)),
        (_DESTINATION, Answer({"0": 0}, 2)),
        (_SOURCE, Open(0, "memory")),
    ],
    "an acknowledgement before the answer": [(_SOURCE, offer(0, "begin")), (_DESTINATION, Ack({}))],
    "a refusal after the answer": [*_BEGUN, (_DESTINATION, Refusal(RefusalCode.BUSY, ""))],
    "channels that begin at 1": [*_BEGUN, (_SOURCE, Open(1, "memory"))],
    "a channel twice": [*_OPENED, (_SOURCE, Open(0, "memory"))],
    "more channels than the answer allows": [*_OPENED, (_SOURCE, Open(1, "disks")), (_SOURCE, Open(2, "disks"))],
    "a channel that the destination opens": [*_BEGUN, (_DESTINATION, Open(0, "memory"))],
    "an acknowledgement of a channel that is not open": [*_OPENED, (_DESTINATION, Ack({"1": 0}))],
    "an acknowledgement of more than was sent": [*_OPENED, (_DESTINATION, Ack({"0": 4}))],
    "an acknowledgement that falls": [*_OPENED, (_DESTINATION, Ack({"0": 3})), (_DESTINATION, Ack({"0": 2}))],
    "an acknowledgement by the source of more than was sent": [*_OPENED, (_SOURCE, Ack({"0": 4}))],
    "a handover of the destination's": [*_OPENED, (_DESTINATION, Handover())],
    "a second handover": [*_HANDED_OVER, (_SOURCE, Handover())],
    "a channel while a guest is handed over": [*_HANDED_OVER, (_SOURCE, Open(1, "disks"))],
    "a cancellation by the source while a guest is handed over": [*_HANDED_OVER, (_SOURCE, Cancel("late", ""))],
    "bye while a guest is handed over": [*_HANDED_OVER, (_SOURCE, Bye())],
    "a second outcome": [
        *_HANDED_OVER,
        (_DESTINATION, Outcome("running")),
        (_DESTINATION, Outcome("running")),
    ],
    "a receipt after a cancellation": [*_OPENED, (_SOURCE, Cancel("x", "")), (_SOURCE, Receipt("{}", ""))],
    "bye after a cancellation": [*_OPENED, (_DESTINATION, Cancel("x", "")), (_SOURCE, Bye())],
    "an outcome that nobody asked for": [*_OPENED, (_DESTINATION, Outcome("running"))],
    "a receipt while a guest is handed over": [*_HANDED_OVER, (_SOURCE, Receipt("{}", ""))],
    "a receipt that nobody asked for": [*_OPENED, (_DESTINATION, Receipt("{}", ""))],
    "a second receipt of the destination's": [
        *_OPENED,
        (_SOURCE, Receipt("{}", "")),
        (_DESTINATION, Receipt("{}", "")),
        (_DESTINATION, Receipt("{}", "")),
    ],
    "a receipt after bye": [
        *_OPENED,
        (_SOURCE, Receipt("{}", "")),
        (_SOURCE, Bye()),
        (_DESTINATION, Receipt("{}", "")),
    ],
    "a second receipt": [*_OPENED, (_SOURCE, Receipt("{}", "")), (_SOURCE, Receipt("{}", ""))],
    "a cancellation after the outcome": [
        *_HANDED_OVER,
        (_DESTINATION, Outcome("running")),
        (_DESTINATION, Cancel("late", "")),
    ],
    "anything after bye": [*_OPENED, (_SOURCE, Bye()), (_SOURCE, Ack({}))],
    "anything after a refusal": [
        (_SOURCE, offer(0, "begin")),
        (_DESTINATION, Refusal(RefusalCode.BUSY, "")),
        (_SOURCE, offer(1, "begin")),
    ],
}


def refused_orders() -> list[dict[str, Any]]:
    def spoken(said: Said) -> list[dict[str, str]]:
        return [{"from": sender.value, "wire": encode_message(message).hex()} for sender, message in said]

    return [{"why": why, "messages": spoken(said)} for why, said in REFUSED_ORDERS.items()]

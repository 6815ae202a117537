"""Test vectors of the wire protocol, docs/wire-vectors.json, as this code makes them.

    python -m tests.transport.wire.vectors     write the file anew

Every input is fixed, so that the file changes only where the protocol does; `test_vectors.py` compares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.transport.wire.message_vectors import (
    PERMIT,
    SESSION,
    message_vectors,
    offer,
    refused_messages,
    refused_orders,
)
from tests.transport.wire.permit_vectors import permit_vectors
from transport.wire.clear_frames import ClearSealer
from transport.wire.frames import HEADER_BYTES, TAG_BYTES, FrameType, LaneSealer
from transport.wire.keys import (
    FRAMES_PER_EPOCH,
    ConnectionKeys,
    Direction,
    epoch_key,
    exporter_context,
    next_lane_secret,
)
from transport.wire.messages import Ack, Answer, Message, Open, encode_message
from transport.wire.preface import make_preface

FILE = Path(__file__).parents[3] / "docs" / "wire-vectors.json"
SECRETS = (bytes(range(48)), bytes(range(100, 148)))
SOURCE_LEAF, DESTINATION_LEAF = b"\x11" * 32, b"\x22" * 32  # SHA-256 of certificates that do not exist
FORTH, BACK = Direction.SOURCE_TO_DESTINATION, Direction.DESTINATION_TO_SOURCE
Frames = Sequence[tuple[FrameType, bytes]]


def vectors() -> dict[str, Any]:
    return {
        "protocol": 1,
        "contexts": [_context([PERMIT], 0), _context([PERMIT], 7), _context(["first", "second"], 0xFFFFFFFF)],
        "keys": [_keys(secret, channel, way) for secret in SECRETS for channel in (0, 1, 255) for way in Direction],
        "prefaces": [_preface(channel) for channel in (0, 3, 255)],
        "refused_prefaces": _refused_prefaces(),
        "lanes": [_every_type(FORTH, 0), _every_type(BACK, 7), _every_type(FORTH, 0x1020304050607), _reset()],
        "clear_lanes": [_clear_lane(0), _clear_lane(7)],
        "refused_clear_frames": _refused_clear_frames(),
        "epochs": _epochs(),
        "refused_frames": _refused_frames(),
        "messages": message_vectors(),
        "refused_messages": refused_messages(),
        "refused_orders": refused_orders(),
        "permits": permit_vectors(),
        "session": _session(),
    }


def text() -> str:
    return json.dumps(vectors(), indent=1) + "\n"


def _context(permits: list[str], attempt: int) -> dict[str, Any]:
    context = exporter_context(permits, SOURCE_LEAF, DESTINATION_LEAF, SESSION, attempt)
    return {
        "permits": permits,
        "source_leaf_sha256": SOURCE_LEAF.hex(),
        "destination_leaf_sha256": DESTINATION_LEAF.hex(),
        "session_id": SESSION.hex(),
        "attempt": attempt,
        "context": context.hex(),
    }


def _keys(secret: bytes, channel: int, way: Direction) -> dict[str, Any]:
    keys = ConnectionKeys(secret)
    lane = keys.lane_secret(channel, way)
    epochs = []
    for _ in range(3):
        epoch = epoch_key(lane)
        epochs.append({"lane_secret": lane.hex(), "key": epoch.key.hex(), "iv": f"{epoch.iv:024x}"})
        lane = next_lane_secret(lane)
    return {
        "secret": secret.hex(),
        "channel": channel,
        "direction": int(way),
        "connection_id": keys.connection_id.hex(),
        "preface_key": keys.preface_key(channel).hex(),
        "epochs": epochs,
    }


def _preface(channel: int) -> dict[str, Any]:
    return {
        "secret": SECRETS[0].hex(),
        "channel": channel,
        "wire": make_preface(ConnectionKeys(SECRETS[0]), channel).hex(),
    }


def _refused_prefaces() -> list[dict[str, Any]]:
    good = make_preface(ConnectionKeys(SECRETS[0]), 3)
    cases = {
        "another magic": b"SLN2" + good[4:],
        "channel 256": good[:4] + b"\x01\x00" + good[6:],
        "a byte that must be zero": good[:7] + b"\x01" + good[8:],
        "another channel's authentication": good[:4] + b"\x00\x04" + good[6:],
        "another connection": make_preface(ConnectionKeys(SECRETS[1]), 3),
        "a changed authentication": _flip(good, 55),
    }
    return [{"why": why, "secret": SECRETS[0].hex(), "wire": wire.hex()} for why, wire in cases.items()]


def _sealed(secret: bytes, way: Direction, first: int, frames: Frames, channel: int = 0) -> list[bytes]:
    sealer = LaneSealer(ConnectionKeys(secret).lane_secret(channel, way), first)
    return [_seal(sealer, kind, payload) for kind, payload in frames]


def _seal(sealer: LaneSealer, kind: FrameType, payload: bytes) -> bytes:
    frame = bytearray(HEADER_BYTES + len(payload) + TAG_BYTES)
    sealer.seal_into(kind, payload, memoryview(frame))
    return bytes(frame)


def _lane(way: Direction, first: int, frames: Frames) -> dict[str, Any]:
    sealed = _sealed(SECRETS[0], way, first, frames)
    return {
        "secret": SECRETS[0].hex(),
        "channel": 0,
        "direction": int(way),
        "first_seq": first,
        "frames": [
            {"type": int(kind), "seq": first + n, "payload": payload.hex(), "wire": wire.hex()}
            for n, ((kind, payload), wire) in enumerate(zip(frames, sealed, strict=True))
        ],
    }


def _every_type(way: Direction, first: int) -> dict[str, Any]:
    return _lane(way, first, [(FrameType.DATA, b"guest"), (FrameType.DATA, bytes(300)), (FrameType.FIN, b"")])


def _reset() -> dict[str, Any]:
    return _lane(BACK, 0, [(FrameType.DATA, b"x"), (FrameType.RESET, b"\x00\x02")])


def _clear(first: int, frames: Frames) -> list[bytes]:
    sealer, made = ClearSealer(first), []
    for kind, payload in frames:
        frame = bytearray(HEADER_BYTES + len(payload))
        sealer.seal_into(kind, payload, memoryview(frame))
        made.append(bytes(frame))
    return made


def _clear_lane(first: int) -> dict[str, Any]:
    """Of a lane of TLS, inside it: of every type but what the other has."""
    frames = [(FrameType.DATA, b"guest"), (FrameType.RESET, b"\0\1") if first else (FrameType.FIN, b"")]
    return {
        "first_seq": first,
        "frames": [
            {"type": int(kind), "seq": first + n, "payload": payload.hex(), "wire": wire.hex()}
            for n, ((kind, payload), wire) in enumerate(zip(frames, _clear(first, frames), strict=True))
        ],
    }


def _refused_clear_frames() -> list[dict[str, Any]]:
    """Where frame 0 is due."""
    (good,) = _clear(0, [(FrameType.DATA, b"guest")])
    cases = {
        "another number": _clear(1, [(FrameType.DATA, b"guest")])[0],
        "an unknown type": good[:4] + b"\x03" + good[5:],
        "a byte that must be zero": good[:7] + b"\x01" + good[8:],
        "data of no byte": bytes(4) + good[4:],
        "data of more than 1 MiB": ((1 << 20) + 1).to_bytes(4) + good[4:],
        "fin with a payload": good[:4] + b"\x01" + good[5:],
        "reset of five bytes": good[:4] + b"\x02" + good[5:],
        "reset of no byte": bytes(4) + b"\x02" + good[5:16],
        "a tag": good + bytes(TAG_BYTES),
        "a frame twice": good + good,
        "after fin": _clear(0, [(FrameType.FIN, b"")])[0] + good[:15] + b"\x01" + good[16:],
        "after reset": b"".join(_clear(0, [(FrameType.RESET, b"\0\1")])) + good[:15] + b"\x01" + good[16:],
    }
    return [{"why": why, "first_seq": 0, "wire": wire.hex()} for why, wire in cases.items()]


def _epochs() -> dict[str, Any]:
    """The last frame of an epoch and the first of the next one; those before are not recorded: one byte 0 each."""
    sealer = LaneSealer(ConnectionKeys(SECRETS[0]).lane_secret(0, FORTH), 5)
    for _ in range(FRAMES_PER_EPOCH - 1):
        _seal(sealer, FrameType.DATA, b"\x00")
    last, first = _seal(sealer, FrameType.DATA, b"last"), _seal(sealer, FrameType.DATA, b"first")
    return {
        "secret": SECRETS[0].hex(),
        "channel": 0,
        "direction": int(FORTH),
        "first_seq": 5,
        "frames": [
            {"epoch": 0, "seq": 5 + FRAMES_PER_EPOCH - 1, "payload": b"last".hex(), "wire": last.hex()},
            {"epoch": 1, "seq": 5 + FRAMES_PER_EPOCH, "payload": b"first".hex(), "wire": first.hex()},
        ],
    }


def _refused_frames() -> list[dict[str, Any]]:
    """Frames that are refused where frame 0 of channel 0 from S to D is due."""
    data = [(FrameType.DATA, b"guest")]
    (good,) = _sealed(SECRETS[0], FORTH, 0, data)
    (two_bytes,) = _sealed(SECRETS[0], FORTH, 0, [(FrameType.DATA, b"\0\1")])
    # What would be frame 1, sealed by whoever has the key: nothing but the fin or reset before it is wrong.
    (fin, after_fin), (reset, after_reset) = (_after(FORTH, *each) for each in _LAST)
    cases = {
        "an unknown type": good[:4] + b"\x03" + good[5:],
        "a byte that must be zero": good[:7] + b"\x01" + good[8:],
        "another number": _sealed(SECRETS[0], FORTH, 1, data)[0],
        "data of no byte": (0).to_bytes(4) + good[4:],
        "data of more than 1 MiB": ((1 << 20) + 1).to_bytes(4) + good[4:],
        "fin with a payload": good[:4] + b"\x01" + good[5:],
        "reset of five bytes": good[:4] + b"\x02" + good[5:],
        "reset of no byte": bytes(4) + b"\x02" + good[5:],
        "data whose type was changed to reset": two_bytes[:4] + b"\x02" + two_bytes[5:],
        "a frame twice": good + good,
        "a changed payload": _flip(good, 17),
        "a changed tag": _flip(good, len(good) - 1),
        "reflected": _sealed(SECRETS[0], BACK, 0, data)[0],
        "of another channel": _sealed(SECRETS[0], FORTH, 0, data, channel=1)[0],
        "of another connection": _sealed(SECRETS[1], FORTH, 0, data)[0],
        "after fin": fin + after_fin,
        "after reset": reset + after_reset,
    }
    return [
        {"why": why, "secret": SECRETS[0].hex(), "channel": 0, "direction": 0, "first_seq": 0, "wire": wire.hex()}
        for why, wire in cases.items()
    ]


_LAST: Frames = [(FrameType.FIN, b""), (FrameType.RESET, b"\0\1")]


def _after(way: Direction, kind: FrameType, payload: bytes) -> tuple[bytes, bytes]:
    """The last frame of a direction, and data sealed as the one that would follow, under the same keys."""
    (last,) = _sealed(SECRETS[0], way, 0, [(kind, payload)])
    _, following = _sealed(SECRETS[0], way, 0, [(FrameType.DATA, b"x"), (FrameType.DATA, b"guest")])
    return last, following


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _session() -> dict[str, Any]:
    """One channel, one lost connection: each way's wire breaks off inside a frame, which is then sent again."""
    forth, back = bytes(range(256)) * 2, b"what the destination's hypervisor says"
    first_forth = _sealed(SECRETS[0], FORTH, 0, [(FrameType.DATA, forth[n : n + 100]) for n in range(0, 400, 100)])
    first_back = _sealed(SECRETS[0], BACK, 0, [(FrameType.DATA, back[:10]), (FrameType.DATA, back[10:20])])
    second_forth = [(FrameType.DATA, forth[300:350]), (FrameType.DATA, forth[350:]), (FrameType.FIN, b"")]
    second_back = [(FrameType.DATA, back[10:]), (FrameType.FIN, b"")]
    return {
        "plaintext": {"source_to_destination": forth.hex(), "destination_to_source": back.hex()},
        "connections": [
            _connection(
                0,
                ([offer(0, "begin"), Open(0, "memory"), Ack({"0": 1})], [Answer({}, 16), Ack({"0": 2})]),
                (0, b"".join(first_forth)[:-20]),
                (0, b"".join(first_back)[:-1]),
            ),
            _connection(
                1,
                ([offer(1, "resume", _0=1), Ack({"0": 3})], [Answer({"0": 3}, 16), Ack({"0": 6})]),
                (3, b"".join(_sealed(SECRETS[1], FORTH, 3, second_forth))),
                (1, b"".join(_sealed(SECRETS[1], BACK, 1, second_back))),
            ),
        ],
    }


def _connection(
    attempt: int,
    control: tuple[list[Message], list[Message]],
    forth: tuple[int, bytes],
    back: tuple[int, bytes],
) -> dict[str, Any]:
    return {
        **_context([PERMIT], attempt),
        "secret": SECRETS[attempt].hex(),
        "control": {
            "source_to_destination": b"".join(map(encode_message, control[0])).hex(),
            "destination_to_source": b"".join(map(encode_message, control[1])).hex(),
        },
        "lane": {
            "channel": 0,
            "preface": make_preface(ConnectionKeys(SECRETS[attempt]), 0).hex(),
            "source_to_destination": {"first_seq": forth[0], "wire": forth[1].hex()},
            "destination_to_source": {"first_seq": back[0], "wire": back[1].hex()},
        },
    }


if __name__ == "__main__":
    FILE.write_text(text())

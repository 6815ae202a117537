"""Messages of the control connection: u32 length (at most 64 KiB) and one JSON object, decoded strictly.

The member `type` names the message. An unknown member, a wrong type or a number out of range is the peer's fault.
Specified in docs/wire-protocol.md section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from policy.permit import Port
from policy.strict_json import strictly
from transport.errors import UNDECODABLE, Misuse, ProtocolViolation, RefusalCode
from transport.hypervisors.moving import Movement
from transport.wire.preface import MAX_CHANNELS

MAX_MESSAGE_BYTES = 64 * 1024
MAX_RECEIPT_CHARS = 48 * 1024  # the counts of 256 channels fit; a gateway takes as much
LENGTH_BYTES = 4

U62 = Annotated[int, Meta(ge=0, lt=1 << 62)]  # counts; more than a lane can carry in a century
Channel = Annotated[int, Meta(ge=0, lt=MAX_CHANNELS)]
SessionIdText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
PermitText = Annotated[str, Meta(min_length=1)]  # its size is refused by its own code
ShortText = Annotated[str, Meta(max_length=512)]
Purpose = Literal["begin", "resume", "settle", "recover"]
# Keys of a JSON object are text; a channel number written in any other way than str(int) is refused.
ChannelText = Annotated[str, Meta(pattern=r"\A(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\Z")]
ChannelCounts = dict[ChannelText, U62]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    pass


class Offer(_Message, frozen=True, tag="offer"):
    """S asks D to take a session up. `purpose` is `begin`; `resume` where its connection was lost; `settle` where only
    the handover of a session that D knows is left to do; `recover` where post-copy was interrupted for good.

    `next`, of a resumption: by channel that S has opened, the first of D's frames that S does not hold.

    `movement`: how S's QEMU sends, where that is not plain pre-copy over one connection. Left out otherwise, so that a
    relay of an earlier version, which knows no other, can take it.
    """

    protocol: Literal[1]
    purpose: Purpose
    permits: Annotated[tuple[PermitText, ...], Meta(min_length=1, max_length=2)]
    session_id: SessionIdText
    attempt: Annotated[int, Meta(ge=0, lt=1 << 32)]
    next: ChannelCounts = {}
    movement: Movement | msgspec.UnsetType = msgspec.UNSET


class Answer(_Message, frozen=True, tag="answer"):
    next: ChannelCounts
    max_channels: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]


class Refusal(_Message, frozen=True, tag="refusal"):
    code: RefusalCode
    message: ShortText


class Open(_Message, frozen=True, tag="open"):
    channel: Channel
    port: Port


class Ack(_Message, frozen=True, tag="ack"):
    """Frames below the number, by channel, are written to the local connection of whoever sends this."""

    written: ChannelCounts


class Handover(_Message, frozen=True, tag="handover"):
    """S's hypervisor has sent everything and S has durably recorded `handed-over`.

    `post_copy`: it has not, but its guest can never run there again: it is stopped for post-copy.
    """

    post_copy: bool = False


class Outcome(_Message, frozen=True, tag="outcome"):
    """D's durable choice: the guest runs there, or D's hypervisor has exited."""

    outcome: Literal["running", "discarded"]


class Cancel(_Message, frozen=True, tag="cancel"):
    code: Annotated[str, Meta(pattern=r"\A[a-z_]{1,40}\Z")]
    reason: ShortText


class Receipt(_Message, frozen=True, tag="receipt"):
    """A signed receipt; `body` is canonical JSON text, `signature` base64 of a DER ECDSA signature by the host key."""

    body: Annotated[str, Meta(max_length=MAX_RECEIPT_CHARS)]
    signature: Annotated[str, Meta(max_length=256)]


class Bye(_Message, frozen=True, tag="bye"):
    """S has nothing more to say; what follows is the end of the connection, in order."""


Message = Offer | Answer | Refusal | Open | Ack | Handover | Outcome | Cancel | Receipt | Bye
_decode_strictly: Final[Callable[[bytes], Message]] = strictly(msgspec.json.Decoder(Message).decode)
_encoder = msgspec.json.Encoder(order="deterministic")


def encode_message(message: Message) -> bytes:
    """The message with its length in front."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise Misuse("a control message of more than 64 KiB")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class MessageReader:
    """Cuts received bytes into messages; holds at most one incomplete message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Messages that `data` completes, in order; `ProtocolViolation` at the first that is not one."""
        self._buffer += data
        messages: list[Message] = []
        while len(self._buffer) >= LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if size > MAX_MESSAGE_BYTES:
                raise ProtocolViolation("a control message of more than 64 KiB")
            if len(self._buffer) < LENGTH_BYTES + size:
                break
            messages.append(_decode(bytes(self._buffer[LENGTH_BYTES : LENGTH_BYTES + size])))
            del self._buffer[: LENGTH_BYTES + size]
        return messages

    @property
    def is_between_messages(self) -> bool:
        return not self._buffer


def _decode(body: bytes) -> Message:
    try:
        return _decode_strictly(body)
    except (ValueError, *UNDECODABLE):
        # The text of the error would carry the peer's bytes into our log.
        raise ProtocolViolation("a control message that does not decode") from None

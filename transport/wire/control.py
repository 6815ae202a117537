"""Which message may come when: the order of the control connection, as one table.

A state is what both ends know to be true. `ControlOrder` is fed every message that is sent or received, by either
end, and refuses what the table does not list: the peer's as `ProtocolViolation`, ours as `Misuse`. It also checks
what a message says against what came before: channels announced in order and once, acknowledgements that never
fall and never go beyond what was sent.

    OFFERING ─Offer→ ANSWERING ─Answer→ OPEN ─Handover→ HANDING_OVER ─Outcome→ SETTLED ─Bye→ ENDED
                        └─Refusal→ ENDED   └─Cancel→ CANCELLED ─Outcome→ SETTLED
"""

from __future__ import annotations

from enum import Enum, auto

from transport.errors import Misuse, ProtocolViolation
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
)


class Role(Enum):
    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def peer(self) -> Role:
        return Role.DESTINATION if self is Role.SOURCE else Role.SOURCE


class Phase(Enum):
    OFFERING = auto()
    ANSWERING = auto()
    OPEN = auto()
    HANDING_OVER = auto()
    CANCELLED = auto()
    SETTLED = auto()
    ENDED = auto()


_S, _D = Role.SOURCE, Role.DESTINATION

# (phase, who sends, message) → next phase. What is not here is forbidden.
TRANSITIONS: dict[tuple[Phase, Role, type[Message]], Phase] = {
    (Phase.OFFERING, _S, Offer): Phase.ANSWERING,
    (Phase.ANSWERING, _D, Answer): Phase.OPEN,
    (Phase.ANSWERING, _D, Refusal): Phase.ENDED,
    (Phase.ANSWERING, _S, Cancel): Phase.CANCELLED,
    (Phase.OPEN, _S, Open): Phase.OPEN,
    (Phase.OPEN, _S, Ack): Phase.OPEN,
    (Phase.OPEN, _D, Ack): Phase.OPEN,
    (Phase.OPEN, _S, Handover): Phase.HANDING_OVER,
    (Phase.OPEN, _S, Receipt): Phase.OPEN,
    (Phase.OPEN, _D, Receipt): Phase.OPEN,
    (Phase.OPEN, _S, Bye): Phase.ENDED,
    (Phase.OPEN, _S, Cancel): Phase.CANCELLED,
    (Phase.OPEN, _D, Cancel): Phase.CANCELLED,
    (Phase.HANDING_OVER, _S, Ack): Phase.HANDING_OVER,
    (Phase.HANDING_OVER, _D, Ack): Phase.HANDING_OVER,
    (Phase.HANDING_OVER, _D, Outcome): Phase.SETTLED,
    # Both ends may cancel at once, and messages that were under way when the other cancelled still arrive.
    (Phase.CANCELLED, _S, Cancel): Phase.CANCELLED,
    (Phase.CANCELLED, _D, Cancel): Phase.CANCELLED,
    (Phase.CANCELLED, _S, Open): Phase.CANCELLED,
    (Phase.CANCELLED, _S, Ack): Phase.CANCELLED,
    (Phase.CANCELLED, _D, Ack): Phase.CANCELLED,
    (Phase.CANCELLED, _D, Answer): Phase.CANCELLED,
    (Phase.CANCELLED, _D, Refusal): Phase.ENDED,
    # D cancelled while S handed over: the guest's fate is still D's durable answer, so Handover must get through.
    (Phase.CANCELLED, _S, Handover): Phase.HANDING_OVER,
    (Phase.CANCELLED, _D, Outcome): Phase.SETTLED,
    (Phase.HANDING_OVER, _D, Cancel): Phase.HANDING_OVER,
    # What S sent before it learned of D's choice.
    (Phase.SETTLED, _S, Open): Phase.SETTLED,
    (Phase.SETTLED, _S, Handover): Phase.SETTLED,
    (Phase.SETTLED, _S, Cancel): Phase.SETTLED,
    (Phase.SETTLED, _S, Ack): Phase.SETTLED,
    (Phase.SETTLED, _D, Ack): Phase.SETTLED,
    (Phase.SETTLED, _S, Receipt): Phase.SETTLED,
    (Phase.SETTLED, _D, Receipt): Phase.SETTLED,
    (Phase.SETTLED, _S, Bye): Phase.ENDED,
    # Under way when S said Bye.
    (Phase.ENDED, _D, Ack): Phase.ENDED,
}


class ControlOrder:
    """One end's view of one control connection."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.phase = Phase.OFFERING
        self.channels = 0
        self.max_channels = 0
        self._offered = 0
        self._written: dict[Role, dict[str, int]] = {Role.SOURCE: {}, Role.DESTINATION: {}}
        self._receipts: set[Role] = set()

    def sent(self, message: Message) -> None:
        """Call before sending; `Misuse` when the message is not ours to send now."""
        try:
            self._pass(self.role, message)
        except ProtocolViolation as violation:
            raise Misuse(violation.rule) from None

    def received(self, message: Message, sent_frames: dict[str, int] | None = None) -> None:
        """Call on receipt. `sent_frames`: frames that we have sent by channel, to judge an Ack by."""
        self._pass(self.role.peer, message)
        if isinstance(message, Ack):
            limit = sent_frames or {}
            if any(count > limit.get(channel, 0) for channel, count in message.written.items()):
                raise ProtocolViolation("an acknowledgement of frames that were not sent")

    def _pass(self, sender: Role, message: Message) -> None:
        following = TRANSITIONS.get((self.phase, sender, type(message)))
        if following is None:
            raise ProtocolViolation(f"{type(message).__name__} from the {sender.value} while {self.phase.name.lower()}")
        match message:
            case Offer(purpose=purpose, next=goes_on):
                if goes_on and (purpose != "resume" or not _is_prefix(goes_on)):
                    raise ProtocolViolation("an offer whose channels are not those of a session that goes on")
                self._offered = len(goes_on)
            case Answer(max_channels=limit, next=goes_on):
                if not _is_prefix(goes_on) or len(goes_on) > self._offered:
                    raise ProtocolViolation("an answer that goes on with channels that were not offered")
                self.max_channels = limit
                self.channels = len(goes_on)
            case Open(channel=channel):
                if channel != self.channels or channel >= self.max_channels:
                    raise ProtocolViolation(f"channel {channel} opened out of order or beyond the limit")
                self.channels += 1
            case Ack(written=written):
                self._check_ack(sender, written)
            case Receipt():
                if sender in self._receipts:
                    raise ProtocolViolation("a second receipt")
                if sender is _D and _S not in self._receipts:
                    raise ProtocolViolation("a receipt that nobody asked for")
                self._receipts.add(sender)
            case Refusal() | Handover() | Outcome() | Cancel() | Bye():
                pass
        self.phase = following

    def _check_ack(self, sender: Role, written: dict[str, int]) -> None:
        known = self._written[sender]
        for channel, count in written.items():
            if int(channel) >= self.channels:
                raise ProtocolViolation("an acknowledgement for a channel that is not open")
            if count < known.get(channel, 0):
                raise ProtocolViolation("an acknowledgement that falls")
        known.update(written)


def _is_prefix(following: dict[str, int]) -> bool:
    """Whether the channels named are the first ones that were opened, none left out."""
    return all(str(number) in following for number in range(len(following)))

"""The order of the control connection: every (phase, sender, message) against the table, and what messages claim."""

import itertools
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from transport.errors import Misuse, ProtocolViolation, RefusalCode
from transport.wire.control import TRANSITIONS, ControlOrder, Phase, Role
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

DOCUMENT = Path(__file__).parents[3] / "docs" / "wire-protocol.md"
SESSION = "0" * 32
EXAMPLE: dict[type[Message], Message] = {
    Offer: Offer(1, "begin", ("p",), SESSION, 0),
    Answer: Answer({}, 2),
    Refusal: Refusal(RefusalCode.BUSY, ""),
    Open: Open(0, "memory"),
    Ack: Ack({}),
    Handover: Handover(),
    Outcome: Outcome("running"),
    Cancel: Cancel("x", ""),
    Receipt: Receipt("{}", ""),
    Bye: Bye(),
}


def at(phase: Phase, role: Role) -> ControlOrder:
    order = ControlOrder(role)
    order.phase = phase
    order.max_channels = 2
    return order


@pytest.mark.parametrize(
    ("phase", "sender", "kind"),
    list(itertools.product(Phase, Role, get_args(Message))),
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", "")),
)
def test_each_message_passes_at_both_ends_exactly_where_the_table_says(
    phase: Phase, sender: Role, kind: type[Message]
) -> None:
    following = TRANSITIONS.get((phase, sender, kind))
    receiver, ours = at(phase, sender.peer), at(phase, sender)
    if following is None:
        with pytest.raises(ProtocolViolation):
            receiver.received(EXAMPLE[kind])
        with pytest.raises(Misuse):
            ours.sent(EXAMPLE[kind])
        assert receiver.phase is ours.phase is phase
    else:
        if (sender, kind) == (Role.DESTINATION, Receipt):  # which answers the source's
            receiver.sent(EXAMPLE[Receipt])
            ours.received(EXAMPLE[Receipt])
        receiver.received(EXAMPLE[kind])
        ours.sent(EXAMPLE[kind])
        assert receiver.phase is ours.phase is following


def test_the_document_has_the_same_table() -> None:
    """What stands in brackets says why; a message without an arrow changes nothing."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition("| phase | S may send | D may send |\n|---|---|---|\n")
    rows = [line.strip("|").split(" | ") for line in rest.partition("\n\n")[0].split("\n")]
    kinds = {kind.__name__.lower(): kind for kind in get_args(Message)}
    written = {}
    for name, *cells in rows:
        phase = Phase[name.strip().upper().replace(" ", "_")]
        for sender, cell in zip((Role.SOURCE, Role.DESTINATION), cells, strict=True):
            for message, to in re.findall(r"([a-z]+)(?: → \*([a-z ]+)\*)?", re.sub(r"\(.*?\)", "", cell)):
                written[phase, sender, kinds[message]] = Phase[to.upper().replace(" ", "_")] if to else phase
    assert written == TRANSITIONS


def test_no_message_of_a_session_comes_before_the_answer() -> None:
    before = {Phase.OFFERING, Phase.ANSWERING}
    assert {kind for phase, _, kind in TRANSITIONS if phase in before} == {Offer, Answer, Refusal, Cancel}


def test_nothing_follows_the_end_but_an_acknowledgement_that_crossed_bye() -> None:
    after = [key for key in TRANSITIONS if key[0] is Phase.ENDED]
    assert after == [(Phase.ENDED, Role.DESTINATION, Ack)]


@pytest.mark.parametrize("channels", [[1], [0, 0], [0, 2], [0, 1, 2]], ids=str)
def test_channels_open_in_order_once_and_within_the_limit(channels: list[int]) -> None:
    order = at(Phase.OPEN, Role.DESTINATION)
    with pytest.raises(ProtocolViolation):
        for channel in channels:
            order.received(Open(channel, "memory"))


def test_acknowledgements_never_fall_and_never_exceed_what_was_sent() -> None:
    order = at(Phase.OPEN, Role.SOURCE)
    order.sent(Open(0, "memory"))
    order.received(Ack({"0": 5}), {"0": 5})
    with pytest.raises(ProtocolViolation):
        order.received(Ack({"0": 4}), {"0": 9})
    with pytest.raises(ProtocolViolation):
        order.received(Ack({"0": 10}), {"0": 9})
    with pytest.raises(ProtocolViolation):
        order.received(Ack({"1": 0}), {"0": 9})


@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.SETTLED], ids=lambda phase: phase.name)
def test_the_destinations_receipt_answers_the_sources(phase: Phase) -> None:
    """Else it could certify what was not over yet, and the source would take that for the answer."""
    order = at(phase, Role.SOURCE)
    with pytest.raises(ProtocolViolation):
        order.received(Receipt("{}", ""))
    order.sent(Receipt("{}", ""))
    order.received(Receipt("{}", ""))


def test_a_second_receipt_is_refused() -> None:
    order = at(Phase.SETTLED, Role.SOURCE)
    order.sent(Receipt("{}", ""))
    order.received(Receipt("{}", ""))
    with pytest.raises(ProtocolViolation):
        order.received(Receipt("{}", ""))


@pytest.mark.parametrize(
    ("purpose", "following"),
    [("begin", {"0": 1}), ("settle", {"0": 1}), ("resume", {"1": 1}), ("resume", {"0": 1, "2": 1})],
)
def test_only_a_resumption_names_channels_and_leaves_none_out(purpose: Any, following: dict[str, int]) -> None:
    order = ControlOrder(Role.DESTINATION)
    with pytest.raises(ProtocolViolation):
        order.received(Offer(1, purpose, ("p",), SESSION, 1, following))


@pytest.mark.parametrize("following", [{"0": 0, "1": 0, "2": 0}, {"1": 0}], ids=str)
def test_an_answer_goes_on_with_the_first_of_the_channels_that_were_offered(following: dict[str, int]) -> None:
    order = ControlOrder(Role.SOURCE)
    order.sent(Offer(1, "resume", ("p",), SESSION, 1, {"0": 0, "1": 0}))
    with pytest.raises(ProtocolViolation):
        order.received(Answer(following, 8))


def test_channels_that_the_answer_does_not_know_are_opened_again_by_their_numbers() -> None:
    order = ControlOrder(Role.DESTINATION)
    order.received(Offer(1, "resume", ("p",), SESSION, 1, {"0": 0, "1": 0}))
    order.sent(Answer({"0": 7}, 8))
    with pytest.raises(ProtocolViolation):
        order.received(Open(0, "memory"))
    order.received(Open(1, "memory"))
    order.received(Ack({"0": 3, "1": 0}), {"0": 3, "1": 0})

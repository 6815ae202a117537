"""What becomes of a session's connections, at each end, as one table: (end, state, event) → (state, action).

The relays ask it after every event whether a session goes on over another connection, and docs/wire-protocol.md prints
it (`rows`; a test compares). `OVER` is not the end of the session: what is left is settled (section 7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from transport.errors import Misuse
from transport.wire.control import Role


class State(Enum):
    BEGINNING = "beginning"
    CONNECTED = "connected"
    LOST = "lost"
    OVER = "over"


class Event(Enum):
    """What happens, in the words of the document."""

    NOT_OFFERED = "no connection, or lost before the offer was sent"
    AWAY = "no connection, after a refusal `busy`"
    OFFER_LOST = "lost after an offer was sent"
    ANSWERED = "answer with true counts"
    NEVER_HEARD = "refusal `busy`, or `session_unknown` to the `resume` that follows a lost answer"
    ANOTHER_HOST = "another host answers"
    REFUSED = "any other refusal"
    LOST = "any part lost; a frame that does not authenticate; no connection"
    RESUMED = "`resume`, greater attempt, true counts"
    STRANGE_OFFER = "`resume` of another host, permit or attempt"
    SETTLES = "`settle`, greater attempt"
    RECOVERS = "`recover`, where the guest was given away in post-copy"
    VIOLATION = "violation on the control connection, false counts among them; cancel; reset; local connection broken"
    DEADLINE = "resume deadline; the permit's end; cancelled here"
    DONE = "receipts exchanged, bye"


@dataclass(frozen=True, slots=True)
class Step:
    state: State
    action: str


_S, _D = Role.SOURCE, Role.DESTINATION
_BEGINNING, _CONNECTED, _LOST, _OVER = State.BEGINNING, State.CONNECTED, State.LOST, State.OVER
_PAUSE = "close all; pause, doubled up to 2 s; 50 ms again after one that carried frames"
_ENDED = "close all; abandon, or ask for the outcome"
_HELD = "close all and the hypervisor's connections; discard, or hold a whole guest"

TABLE: dict[tuple[Role, State, Event], Step] = {
    (_S, _BEGINNING, Event.NOT_OFFERED): Step(_OVER, "refused: nothing was touched"),
    (_S, _BEGINNING, Event.AWAY): Step(_BEGINNING, "pause; next time `begin`"),
    (_S, _BEGINNING, Event.OFFER_LOST): Step(_BEGINNING, "pause; next time `resume` with empty `next`"),
    (_S, _BEGINNING, Event.ANSWERED): Step(_CONNECTED, "the hypervisor may connect; `open`, lanes"),
    (_S, _BEGINNING, Event.NEVER_HEARD): Step(_BEGINNING, "pause; next time `begin`"),
    (_S, _BEGINNING, Event.REFUSED): Step(_OVER, "fail"),
    (_S, _BEGINNING, Event.VIOLATION): Step(_OVER, "fail"),
    (_S, _BEGINNING, Event.DEADLINE): Step(_OVER, "fail"),
    (_S, _CONNECTED, Event.LOST): Step(_LOST, "close all, drop keys, note the resume deadline; pause of 50 ms"),
    (_S, _CONNECTED, Event.VIOLATION): Step(_OVER, _ENDED),
    (_S, _CONNECTED, Event.DEADLINE): Step(_OVER, _ENDED),
    (_S, _CONNECTED, Event.DONE): Step(_OVER, "close all"),
    (_S, _LOST, Event.LOST): Step(_LOST, _PAUSE),
    (_S, _LOST, Event.ANOTHER_HOST): Step(_LOST, _PAUSE),
    (_S, _LOST, Event.ANSWERED): Step(
        _CONNECTED, "rewind, lanes, unknown channels by `open`, unanswered `handover` or `receipt` again"
    ),
    (_S, _LOST, Event.REFUSED): Step(_OVER, _ENDED),
    (_S, _LOST, Event.VIOLATION): Step(_OVER, _ENDED),
    (_S, _LOST, Event.DEADLINE): Step(_OVER, _ENDED),
    (_D, _CONNECTED, Event.LOST): Step(
        _LOST, "close all, drop keys, keep the hypervisor's connections, note the resume deadline"
    ),
    (_D, _CONNECTED, Event.RESUMED): Step(
        _CONNECTED, "close the old connection first, then rewind, answer, expect lanes"
    ),
    (_D, _CONNECTED, Event.STRANGE_OFFER): Step(_CONNECTED, "refusal"),
    (_D, _CONNECTED, Event.SETTLES): Step(_OVER, "close the old connection and the hypervisor's; settle"),
    (_D, _CONNECTED, Event.RECOVERS): Step(
        _CONNECTED, "close the old connection and the hypervisor's; the session is the new one"
    ),
    (_D, _CONNECTED, Event.VIOLATION): Step(_OVER, "`cancel`, " + _HELD),
    (_D, _CONNECTED, Event.DEADLINE): Step(_OVER, "`cancel`, " + _HELD),
    (_D, _CONNECTED, Event.DONE): Step(_OVER, "close all"),
    (_D, _LOST, Event.RESUMED): Step(_CONNECTED, "rewind, answer, expect lanes"),
    (_D, _LOST, Event.STRANGE_OFFER): Step(_LOST, "refusal"),
    (_D, _LOST, Event.SETTLES): Step(_OVER, "close the hypervisor's connections; settle"),
    (_D, _LOST, Event.RECOVERS): Step(_CONNECTED, "close the hypervisor's connections; the session is the new one"),
    (_D, _LOST, Event.VIOLATION): Step(_OVER, _HELD),
    (_D, _LOST, Event.DEADLINE): Step(_OVER, _HELD),
    (_D, _OVER, Event.RESUMED): Step(_OVER, "refusal `session_unknown`"),
    (_D, _OVER, Event.STRANGE_OFFER): Step(_OVER, "refusal"),
    (_D, _OVER, Event.SETTLES): Step(_OVER, "outcome"),
    (_D, _OVER, Event.RECOVERS): Step(_CONNECTED, "the session is the new one"),
}


def follow(end: Role, state: State, event: Event) -> Step:
    """`Misuse` for what cannot happen there."""
    step = TABLE.get((end, state, event))
    if step is None:
        raise Misuse(f"{event.name.lower()} at the {end.value} while {state.value}")
    return step


def rows() -> Iterator[str]:
    """The table as docs/wire-protocol.md has it, a line each."""
    yield "| end | state | event | state | action |"
    yield "|---|---|---|---|---|"
    for (end, state, event), step in TABLE.items():
        yield f"| {end.name[0]} | {state.value} | {event.value} | {step.state.value} | {step.action} |"

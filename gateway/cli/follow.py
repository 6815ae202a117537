"""Following a migration to its outcome, and what Ctrl-C means meanwhile.

The loop is free of terminal and clock: it asks, shows and sleeps through what it is given. Ctrl-C sets a
flag and nothing more, so that it can neither tear an answer apart nor lose the id of a migration that the
gateway has already begun; the second one leaves at once.
"""

# Each argument replaces one thing of the world in a test.
# ruff: noqa: PLR0913

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Protocol

from gateway.cli.errors import OPERATOR, REQUESTER, CommandError, Refused, Unreachable, login_has_ended
from gateway.cli.replies import MigrationReply

FINAL_STATES = frozenset({"completed", "failed", "cancelled", "denied"})
POLL_SECONDS = 0.25
RECEIPT_SECONDS = 3
PATIENCE_SECONDS = 60  # for a gateway that does not answer: the migration goes on without it
LOGIN_SECONDS = 300  # for somebody whose login has ended to sign in anew, in another terminal


class Asks(Protocol):
    """What following needs of the client."""

    def migration(self, migration_id: str) -> MigrationReply:
        """The state now."""

    def cancel(self, migration_id: str) -> None:
        """Ask for an end."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds that only go forward, and a wait."""

    now: Callable[[], float]
    sleep: Callable[[float], None]


class Lull:
    """Time in which nothing is seen, because the gateway is away or the login has ended: it may pass, or last too long.

    `note`: told once, where a person can end it.
    """

    def __init__(self, now: Callable[[], float], note: Callable[[str], None]) -> None:
        self._now = now
        self._note = note
        self._since: float | None = None
        self._is_away = False
        self._told = False

    def answered(self) -> None:
        """It is over, if there was one."""
        self._since, self._told = None, False

    def may_pass(self, error: CommandError) -> bool:
        """Whether to ask again. A gateway that goes away while a login is waited for, or after it, has its own time."""
        is_away = isinstance(error, Unreachable)
        if not is_away and not login_has_ended(error):
            return False
        now = self._now()
        if self._since is None or self._is_away != is_away:
            self._since, self._is_away = now, is_away
        waited = now - self._since
        if is_away:
            return waited < PATIENCE_SECONDS
        if not self._told:
            self._note(
                "Your login has ended. Run `sealane login` in another terminal, for the same token file, within "
                f"{LOGIN_SECONDS // 60} minutes: then it goes on here."
            )
            self._told = True
        return waited < LOGIN_SECONDS


class Interrupts:
    """Counts Ctrl-C while it is entered; the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def follow(
    client: Asks,
    migration_id: str,
    *,
    interrupts: Interrupts,
    clock: Clock,
    deadline_seconds: float,
    show: Callable[[MigrationReply], None],
    note: Callable[[str], None],
) -> MigrationReply:
    """Poll until a final state and return it.

    Raises Unreachable when the gateway has not answered for PATIENCE_SECONDS, Refused at the deadline and
    LOGIN_SECONDS after a login that has ended: in all the migration itself goes on, and the error says how to find its
    outcome.
    """
    started = clock.now()
    lull = Lull(clock.now, note)
    cancel_sent = False
    ended: float | None = None
    while True:
        try:
            if interrupts.asked and not cancel_sent and ended is None:
                cancel_sent = _cancel(client, migration_id, note)
            reply = client.migration(migration_id)
            lull.answered()
        except (Unreachable, Refused) as error:
            if not lull.may_pass(error):
                raise _lost_sight(migration_id, error) from error
        else:
            show(reply)
            if reply.state in FINAL_STATES:
                ended = clock.now() if ended is None else ended
                if _is_told(reply) or clock.now() - ended >= RECEIPT_SECONDS:
                    return reply
        if clock.now() - started >= deadline_seconds:
            raise Refused(
                f"migration {migration_id} has no outcome yet and goes on",
                REQUESTER,
                _find_later(migration_id),
                "still_running",
            )
        clock.sleep(POLL_SECONDS)


def _is_told(reply: MigrationReply) -> bool:
    """Whether all of the end is there. Why it failed the source says, and how it was protected the hosts' receipts: the
    destination's receipt may come before the one, and the source's report before the others."""
    match reply.state:
        case "completed":
            return bool(reply.receipts)
        case "failed":
            return bool(reply.message)
        case _:
            return True


def _cancel(client: Asks, migration_id: str, note: Callable[[str], None]) -> bool:
    """True once the gateway has answered, be it with a no: then the outcome alone decides."""
    try:
        client.cancel(migration_id)
    except Refused as error:
        if login_has_ended(error):
            raise  # and asked again after a login
        note(f"The gateway does not cancel: {error.what}. Waiting for the outcome.")
    else:
        note("Asked the gateway to cancel. Waiting for the outcome; Ctrl-C again leaves without it.")
    return True


def _lost_sight(migration_id: str, error: Unreachable | Refused) -> CommandError:
    if isinstance(error, Unreachable):
        what = f"lost sight of migration {migration_id}, which goes on: {error.what}"
        return Unreachable(what, OPERATOR, _find_later(migration_id))
    what = f"migration {migration_id} is not followed to its end, and goes on: {error.what}"
    if not login_has_ended(error):
        return Refused(what, error.who_must_act, error.next_step, error.code)
    return Refused(what, REQUESTER, f"run `sealane login`, then `sealane migration show {migration_id}`", error.code)


def _find_later(migration_id: str) -> str:
    return f"run `sealane audit query --migration {migration_id}` later"

"""`sealane drain`: empty a host. First which VMs may go where, then a queue that carries it out and a report."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.asking import signed_in
from gateway.cli.errors import CommandError, Unreachable, login_has_ended
from gateway.cli.follow import Interrupts, Lull
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import note, print_json, say
from gateway.cli.placement import complete_host
from gateway.counted import counted

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient
    from gateway.cli.replies import DrainReply, MigrationReply, ProspectsReply

POLL_SECONDS = 1.0
_FIRST_WORD, _NEXT_WORDS = 3, 30  # looks at a move, after which and between which it is told how far it is
SHOWN_DESTINATIONS = 5


def drain(
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="The host to empty: name or SPIFFE id.", autocompletion=complete_host)
    ],
    check: Annotated[bool, typer.Option("--check", help="Only show which VMs may go where. Nothing moves.")] = False,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="HOST", help="Only to this host; repeat it. Default: all others."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why, e.g. a ticket; recorded with each move.")
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=64, help="Migrations at the same time, from this host.")
    ] = 2,
    per_destination: Annotated[
        int, typer.Option("--per-destination", min=1, max=64, help="Of them at most so many to one host.")
    ] = 1,
    per_link: Annotated[
        int, typer.Option("--per-link", min=1, max=64, help="Of them at most so many to hosts of one other site.")
    ] = 1,
    tries: Annotated[int, typer.Option("--tries", min=1, max=10, help="Destinations to try for each VM.")] = 3,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move every VM of a host elsewhere, as far as policy allows it, and report what came of each.

    Each move is asked for, decided and recorded like any other. One that fails, or is not allowed any more, is tried at
    the next destination. Ctrl-C begins no more moves and waits for those under way. Exit code 0 when the host is
    empty (with --check: every VM may go somewhere), else 1.

    \b
    Examples:
      sealane drain host-a --check
      sealane drain host-a --to host-b --to host-c --reason CHG-1042
    """

    body: dict[str, Any] = {"host": host, **({"to": to} if to else {}), **({"reason": reason} if reason else {})}
    with signed_in(gateway, ca, token_file) as client:
        found = client.check_drain(body)
        if check:
            _show(found, as_json=as_json)
            may_all = all(each.destinations and not each.cannot for each in found.prospects)
            raise typer.Exit(0 if may_all and not _is_unknown(found) else 1)
        tell: Callable[[str], None] = note if as_json else say
        queue = Queue(client, found, reason, Limits(at_once, per_destination, per_link, tries), tell)
        # A Ctrl-C tears no answer apart: a move that is being asked for is known, and followed, with the others.
        with Interrupts() as interrupts:
            try:
                queue.run(time.sleep, lambda: interrupts.asked)
            except KeyboardInterrupt:
                queue.leave()
                _report(queue, found, as_json=as_json)
                raise
    _report(queue, found, as_json=as_json)
    raise typer.Exit(0 if all(move.outcome == "moved" for move in queue.moves) and not _is_unknown(found) else 1)


def _how_far(reply: MigrationReply) -> str:
    from gateway.cli.migration_view import how_far

    return how_far(reply)


@dataclass(slots=True)
class Move:
    """One VM on its way. `because`: why it is still there, or nobody knows."""

    prospects: ProspectsReply
    destinations: deque[str]
    outcome: str = "waiting"
    destination: str | None = None
    migration_id: str | None = None
    because: str = ""
    tried: list[str] = field(default_factory=list)
    looks: int = 0
    is_asked_for: bool = False  # and no answer has come

    @property
    def name(self) -> str:
        return self.prospects.vm.name


@dataclass(frozen=True, slots=True)
class Limits:
    """Migrations at once: in all, to one host, over the link to one other site. `tries`: destinations for each VM."""

    at_once: int
    per_destination: int
    per_link: int
    tries: int


class Queue:
    """Carries moves out within the limits; the next destination where one fails."""

    def __init__(
        self,
        client: GatewayClient,
        found: DrainReply,
        reason: str | None,
        limits: Limits,
        tell: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._reason = reason
        self._limits = limits
        self._links = found.links
        self._tell = tell
        self._lull = Lull(now, tell)
        self._has_to_wait = False
        self._was_told_to_wait = False
        self._is_stopped = False
        self.moves = [Move(each, deque(each.destinations[: limits.tries])) for each in found.prospects]
        for move in self.moves:
            if move.prospects.cannot is not None or not move.destinations:
                self._end(move, "stays", _why_not(move.prospects))

    def _stop(self) -> None:
        """Begin no more."""
        self._is_stopped = True
        self._tell("No more moves are begun; waiting for those under way (Ctrl-C again leaves them alone).")
        for move in self.moves:
            if move.outcome == "waiting":
                self._end(move, "stays", move.because or "not begun: interrupted")

    def leave(self) -> None:
        """Follow no more either: what is under way goes on."""
        for move in self.moves:
            if move.outcome == "moving":
                self._end(move, "not_followed", _not_followed(move, "interrupted"))
            elif move.outcome == "waiting" and move.is_asked_for:
                self._end(
                    move, "not_followed", f"perhaps under way to {move.tried[-1]}: interrupted as it was asked for"
                )
            elif move.outcome == "waiting":
                self._end(move, "stays", move.because or "not begun: interrupted")

    def run(self, sleep: Callable[[float], None], is_stop_asked: Callable[[], bool] = lambda: False) -> None:
        """Until every move has ended."""
        while True:
            self._has_to_wait = False
            self._begin_some(is_stop_asked)
            if is_stop_asked() and not self._is_stopped and not self._is_over:
                self._stop()
            if self._is_over:
                return
            sleep(POLL_SECONDS)
            for move in self.moves:
                if move.outcome == "moving":
                    self._look(move)

    @property
    def _is_over(self) -> bool:
        return not any(move.outcome in {"waiting", "moving"} for move in self.moves)

    def _begin_some(self, is_stop_asked: Callable[[], bool]) -> None:
        under_way = [move.destination for move in self.moves if move.outcome == "moving" and move.destination]
        for move in self.moves:
            if self._has_to_wait or len(under_way) >= self._limits.at_once or is_stop_asked():
                return
            if move.outcome != "waiting":
                continue
            free = next((each for each in move.destinations if self._has_room(each, under_way)), None)
            if free is not None and self._begin(move, free):
                under_way.append(free)

    def _has_room(self, destination: str, under_way: list[str]) -> bool:
        if under_way.count(destination) >= self._limits.per_destination:
            return False
        link = self._links.get(destination)
        return link is None or sum(self._links.get(each) == link for each in under_way) < self._limits.per_link

    def _begin(self, move: Move, destination: str) -> bool:
        move.destinations.remove(destination)
        move.tried.append(destination)
        move.is_asked_for = True
        question = {"vm": move.prospects.vm.uuid, "destination": destination}
        if self._reason is not None:
            question["reason"] = self._reason
        try:
            reply = self._client.request_migration(question)
            self._lull.answered()
        except CommandError as error:
            move.is_asked_for = False
            if self._has_to_be_waited_for(error):
                self._wait_a_turn(move, destination, error)
            else:
                self._failed(move, destination, error.what)
            return False
        move.is_asked_for = False
        if not reply.decision.allowed or reply.migration_id is None:
            self._failed(move, destination, reply.decision.denied_because or "denied")
            return False
        move.outcome, move.destination, move.migration_id = "moving", destination, reply.migration_id
        self._tell(f"{move.name}: moving to {destination} ({reply.migration_id})")
        return True

    def _has_to_be_waited_for(self, error: CommandError) -> bool:
        if _is_of_no_host(error):
            return self._lull.may_pass(error)
        self._lull.answered()
        return error.code == "too_many_refusals"

    def _wait_a_turn(self, move: Move, destination: str, error: CommandError) -> None:
        """Nothing was decided: all that have not begun are asked for later."""
        move.destinations.appendleft(destination)
        move.tried.remove(destination)
        self._has_to_wait = True
        if not self._was_told_to_wait:
            self._tell(f"{error.what}; what has not begun waits")
        self._was_told_to_wait = True

    def _look(self, move: Move) -> None:
        assert move.migration_id is not None
        try:
            state = self._client.migration(move.migration_id)
            self._lull.answered()
        except CommandError as error:
            if not self._lull.may_pass(error):  # the migration goes on without us
                self._end(move, "not_followed", _not_followed(move, error.what))
            return
        if state.outcome is None:
            move.looks += 1
            if move.looks == _FIRST_WORD or move.looks % _NEXT_WORDS == 0:
                self._tell(f"{move.name}: {_how_far(state)}")
            return
        if state.outcome == "completed":
            self._end(move, "moved", "")
        else:
            self._failed(move, move.destination or "", state.message or state.outcome)

    def _failed(self, move: Move, destination: str, because: str) -> None:
        self._tell(f"{move.name}: not to {destination}: {because}")
        move.destination = None
        if move.destinations and not self._is_stopped:
            move.outcome, move.because = "waiting", because
        else:
            self._end(move, "stays", because)

    def _end(self, move: Move, outcome: str, because: str) -> None:
        move.outcome, move.because = outcome, because
        if outcome == "moved":
            self._tell(f"{move.name}: moved to {move.destination}")


def _not_followed(move: Move, because: str) -> str:
    return f"under way, and not followed any more: {because}; see `sealane migration show {move.migration_id}`"


def _is_of_no_host(error: CommandError) -> bool:
    """It would be the same for every destination: no gateway answers, or the login has ended."""
    return login_has_ended(error) or error.code == Unreachable.default_code


def _why_not(found: ProspectsReply) -> str:
    if found.cannot is not None:
        return found.cannot
    return "; ".join(f"{_some(each.hosts)}: {each.because}" for each in found.refused) or "there is nowhere to go"


def _some(hosts: tuple[str, ...]) -> str:
    more = f" and {len(hosts) - SHOWN_DESTINATIONS} more" if len(hosts) > SHOWN_DESTINATIONS else ""
    return ", ".join(hosts[:SHOWN_DESTINATIONS]) + more


def _show(found: DrainReply, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    for each in found.prospects:
        where = "cannot move" if each.cannot else _some(each.destinations) or "may go nowhere"
        say(f"{each.vm.name:<24} {where}")
        if each.cannot:
            say(f"  {each.cannot}")
        for reason in each.refused:
            say(f"  not to {_some(reason.hosts)}: {reason.because}")
    if not found.prospects:
        say(_nothing(found))
        return
    vms = f"{found.may_move} of {counted(found.vms, 'VM')} of {found.host}"
    say(f"{vms} may go somewhere (record {found.record_index}).")


def _is_unknown(found: DrainReply) -> bool:
    """Whether nobody knows what is there: no VM for all that is known, and the host itself says nothing."""
    return not found.prospects and not found.is_heard


def _nothing(found: DrainReply) -> str:
    if _is_unknown(found):
        return f"{found.host}: its relay has not said lately what runs there, and nobody else knows."
    return f"{found.host}: no VM is there, for all that is known."


def _report(queue: Queue, found: DrainReply, *, as_json: bool) -> None:
    stay = [move for move in queue.moves if move.outcome != "moved"]
    if as_json:
        moves = [
            {
                "vm": move.name,
                "outcome": move.outcome,
                "destination": move.destination,
                "migration_id": move.migration_id,
                "tried": move.tried,
                "because": move.because or None,
            }
            for move in queue.moves
        ]
        outcome = "unknown" if _is_unknown(found) else "not_empty" if stay else "empty"
        print_json({"host": found.host, "outcome": outcome, "moves": moves})
        return
    if not queue.moves:
        say(_nothing(found))
        return
    say(f"{found.host}: {len(queue.moves) - len(stay)} of {counted(len(queue.moves), 'VM')} moved.")
    for move in stay:
        say(f"  {move.name} {'stays' if move.outcome == 'stays' else 'is'}: {move.because}")

"""Evacuation permits on their way to the host that is to hold them, in memory alone until it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from gateway.dispatch import Assignment, Dispatch, QueueFull
from gateway.errors import Overloaded, RelayRefused, RelayUnreachable
from policy.facts import HostFacts
from policy.permit import MAX_BEGIN_SECONDS

HELD_SECONDS: Final = 30.0
FORGET_TELLS: Final = 4  # that a relay is told to forget them; nothing comes back
MAX_WAITING: Final = 64
MAX_OF_A_HOST: Final = 4  # its relay takes no more at once
MAX_WITHDRAWALS: Final = 16  # that wait for one host, and as many more of what is known here: moves need the room
REMEMBERED: Final = 4096
_OFFER: Final = "evacuation"
_FORGET: Final = "withdraw_evacuation"

log = structlog.get_logger("gateway.alarm")


@dataclass(slots=True)
class _Prepared:
    """What is being decided (no `document` yet), or waits for its relay to take it. `problem`: None while nobody has
    answered; the first word counts."""

    host: str
    document: dict[str, Any] = field(default_factory=dict, repr=False)
    answered: trio.Event = field(default_factory=trio.Event)
    problem: str | None = None

    def answer(self, problem: str) -> None:
        if self.problem is None:
            self.problem = problem
            self.answered.set()


class HandingOver:
    """What waits for its relay, by evacuation. What was prepared before the start, or elsewhere, it does not know."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._prepared: dict[str, _Prepared] = {}
        self._known: dict[str, str] = {}  # the host, by evacuation

    @contextmanager
    def place(self, host: HostFacts, evacuation_id: str) -> Iterator[None]:
        """For one that is being prepared, from its first decision on: by then it may be withdrawn. Errors:
        Overloaded."""
        of_host = sum(each.host == host.spiffe_id for each in self._prepared.values())
        if of_host >= MAX_OF_A_HOST or len(self._prepared) >= MAX_WAITING:
            raise Overloaded(f"other evacuations of {host.name}, or many of others, are being prepared")
        self._prepared[evacuation_id] = _Prepared(host.spiffe_id)
        try:
            yield
        finally:
            del self._prepared[evacuation_id]

    async def hand_over(
        self, source: HostFacts, evacuation_id: str, until: int, orders: Sequence[dict[str, Any]]
    ) -> str | None:
        """None once the relay holds them durably; else why not. It has its place."""
        prepared = self._prepared[evacuation_id]
        prepared.document = {"evacuation_id": evacuation_id, "until": until, "orders": list(orders)}
        self._known[evacuation_id] = source.spiffe_id
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        try:
            if not prepared.answered.is_set():
                self._tell(source, _OFFER, evacuation_id)
            with trio.move_on_after(HELD_SECONDS):
                await prepared.answered.wait()
            prepared.answer("its relay did not answer in time")
        except RelayUnreachable as error:
            prepared.answer(error.detail)
        finally:
            if prepared.problem != "":
                self.take_back(source, evacuation_id)
        return prepared.problem or None

    def take_back(self, source: HostFacts, evacuation_id: str) -> None:
        """What the log does not say that it is held: its answer may be lost, or it has failed after it took them."""
        self._dispatch.acknowledge(source.spiffe_id, evacuation_id, frozenset({_OFFER, _FORGET}))
        try:
            self._tell(source, _FORGET, evacuation_id)
        except RelayUnreachable as error:
            log.error("a relay is not told to forget permits", evacuation=evacuation_id, cause=error.detail)

    def forget(self, host: HostFacts, evacuation_id: str) -> None:
        """Have the relay forget its permits, and whoever prepares them know. Errors: RelayUnreachable, Overloaded."""
        if (prepared := self._prepared.get(evacuation_id)) is not None and prepared.host == host.spiffe_id:
            prepared.answer("it was withdrawn meanwhile")
        is_known = self._known.get(evacuation_id) == host.spiffe_id
        self._dispatch.acknowledge(host.spiffe_id, evacuation_id, frozenset({_FORGET}))
        if self._dispatch.count(host.spiffe_id, _FORGET) >= MAX_WITHDRAWALS * (1 + is_known):
            raise Overloaded(f"many withdrawals wait for the relay on {host.name}: repeat this one")
        self._tell(host, _FORGET, evacuation_id)

    def fetch(self, host: str, evacuation_id: str) -> dict[str, Any]:
        """What this host is to hold. Errors: RelayRefused for one that was prepared for another host, or for none."""
        return self._of_host(host, evacuation_id).document

    def held(self, host: str, evacuation_id: str, problem: str) -> None:
        """The host has answered. Errors: RelayRefused."""
        prepared = self._of_host(host, evacuation_id)
        prepared.answer(problem)
        self._dispatch.acknowledge(host, evacuation_id, frozenset({_OFFER}))

    def _tell(self, host: HostFacts, kind: str, evacuation_id: str) -> None:
        document = {"kind": kind, "evacuation_id": evacuation_id}
        is_offer = kind == _OFFER
        expires = trio.current_time() + (HELD_SECONDS if is_offer else float(MAX_BEGIN_SECONDS))
        told = Assignment(evacuation_id, kind, document, expires, tells_left=None if is_offer else FORGET_TELLS)
        try:
            self._dispatch.assign(host.spiffe_id, told)
        except QueueFull as error:
            raise RelayUnreachable(f"the relay on {host.name} does not take its assignments") from error

    def _of_host(self, host: str, evacuation_id: str) -> _Prepared:
        prepared = self._prepared.get(evacuation_id)
        if prepared is None or prepared.host != host or not prepared.document:
            raise RelayRefused("no evacuation of that id waits for this host", code="not_a_party")
        return prepared

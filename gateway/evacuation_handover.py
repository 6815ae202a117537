"""Evacuation permits on their way to the host that is to hold them, in memory alone until it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from gateway.dispatch import Assignment, Dispatch, QueueFull
from gateway.errors import RelayRefused, RelayUnreachable
from policy.facts import HostFacts
from policy.permit import MAX_BEGIN_SECONDS

HELD_SECONDS: Final = 30.0
FORGET_TELLS: Final = 4  # that a relay is told to forget them; nothing comes back
MAX_WAITING: Final = 64

log = structlog.get_logger("gateway.alarm")


@dataclass(slots=True)
class _Prepared:
    """What waits for its relay to take it. `problem`: None while it has not answered."""

    host: str
    document: dict[str, Any] = field(repr=False)
    answered: trio.Event = field(default_factory=trio.Event)
    problem: str | None = None


class HandingOver:
    """What waits for its relay, by evacuation."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._prepared: dict[str, _Prepared] = {}

    @property
    def is_full(self) -> bool:
        return len(self._prepared) >= MAX_WAITING

    async def hand_over(
        self, source: HostFacts, evacuation_id: str, until: int, orders: Sequence[dict[str, Any]]
    ) -> str | None:
        """None once the relay holds them durably; else why not."""
        document = {"evacuation_id": evacuation_id, "until": until, "orders": list(orders)}
        prepared = self._prepared[evacuation_id] = _Prepared(source.spiffe_id, document)
        try:
            self._tell(source, "evacuation", evacuation_id)
            with trio.move_on_after(HELD_SECONDS):
                await prepared.answered.wait()
            return (prepared.problem or None) if prepared.answered.is_set() else "its relay did not answer in time"
        except RelayUnreachable as error:
            return error.detail
        finally:
            self._prepared.pop(evacuation_id, None)
            if prepared.problem != "":
                self.take_back(source, evacuation_id)

    def take_back(self, source: HostFacts, evacuation_id: str) -> None:
        """What the log does not say that it is held: its answer may be lost, or it has failed after it took them."""
        self._dispatch.acknowledge(source.spiffe_id, evacuation_id, frozenset({"evacuation"}))
        try:
            self._tell(source, "withdraw_evacuation", evacuation_id)
        except RelayUnreachable as error:
            log.error("a relay is not told to forget permits", evacuation=evacuation_id, cause=error.detail)

    def forget(self, host: HostFacts, evacuation_id: str) -> None:
        """Have the relay forget its permits. Errors: RelayUnreachable."""
        self._prepared.pop(evacuation_id, None)
        self._tell(host, "withdraw_evacuation", evacuation_id)

    def fetch(self, host: str, evacuation_id: str) -> dict[str, Any]:
        """What this host is to hold. Errors: RelayRefused for one that was prepared for another host, or for none."""
        return self._of_host(host, evacuation_id).document

    def held(self, host: str, evacuation_id: str, problem: str) -> None:
        """The host has answered. Errors: RelayRefused."""
        prepared = self._of_host(host, evacuation_id)
        prepared.problem = problem
        prepared.answered.set()
        self._dispatch.acknowledge(host, evacuation_id, frozenset({"evacuation"}))

    def _tell(self, host: HostFacts, kind: str, evacuation_id: str) -> None:
        document = {"kind": kind, "evacuation_id": evacuation_id}
        is_offer = kind == "evacuation"
        expires = trio.current_time() + (HELD_SECONDS if is_offer else float(MAX_BEGIN_SECONDS))
        told = Assignment(evacuation_id, kind, document, expires, tells_left=None if is_offer else FORGET_TELLS)
        try:
            self._dispatch.assign(host.spiffe_id, told)
        except QueueFull as error:
            raise RelayUnreachable(f"the relay on {host.name} does not take its assignments") from error

    def _of_host(self, host: str, evacuation_id: str) -> _Prepared:
        prepared = self._prepared.get(evacuation_id)
        if prepared is None or prepared.host != host:
            raise RelayRefused("no evacuation of that id waits for this host", code="not_a_party")
        return prepared

"""Questions to relays that are answered once: queued like assignments, answered by a call of their own, in time.

An answer counts only from the host that was asked. A relay that does not answer is a finding, never an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from gateway.dispatch import Assignment, Dispatch, QueueFull
from gateway.errors import RelayRefused
from transport.hypervisors.preflight_facts import Inspection

WAIT_SECONDS: Final = 12.0
MAX_WAITING: Final = 256
MAX_OF_A_HOST: Final = 16  # its relay answers eight at a time, and moves need the rest of its queue


@dataclass(slots=True)
class _Question:
    host: str
    answered: trio.Event = field(default_factory=trio.Event)
    answer: Inspection | None = None


class Inspections:
    """`new_id`: unguessable ids."""

    def __init__(self, dispatch: Dispatch, new_id: Callable[[], str]) -> None:
        self._dispatch = dispatch
        self._new_id = new_id
        self._waiting: dict[str, _Question] = {}

    async def ask(self, host: str, question: dict[str, Any]) -> Inspection:
        """What the relay of `host` answers; an `Inspection` that says so where it does not."""
        if len(self._waiting) >= MAX_WAITING:
            return Inspection(trouble="too many hosts are being asked at this moment; repeat it")
        if sum(each.host == host for each in self._waiting.values()) >= MAX_OF_A_HOST:
            return Inspection(trouble="too many questions wait for its relay at this moment; repeat it")
        inspection_id = self._new_id()
        waiting = self._waiting[inspection_id] = _Question(host)
        document = {"kind": "inspect", "inspection_id": inspection_id, **question}
        expires = trio.current_time() + WAIT_SECONDS
        try:
            self._dispatch.assign(host, Assignment(inspection_id, "inspect", document, expires))
            with trio.move_on_at(expires):
                await waiting.answered.wait()
        except QueueFull:
            return Inspection(trouble="its relay does not take its assignments")
        finally:
            del self._waiting[inspection_id]
            self._dispatch.acknowledge(host, inspection_id, frozenset({"inspect"}))
        return waiting.answer or Inspection(trouble=f"its relay did not answer within {WAIT_SECONDS:g} s")

    def answer(self, host: str, inspection_id: str, answer: Inspection) -> None:
        """Errors: RelayRefused, for an answer to what this host was not asked, or not any more."""
        waiting = self._waiting.get(inspection_id)
        if waiting is None or waiting.host != host:
            raise RelayRefused("nobody waits for this answer of this host", code="not_asked")
        if waiting.answer is None:
            waiting.answer = answer
            waiting.answered.set()

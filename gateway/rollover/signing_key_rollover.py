"""The steps of a rollover that the key of permits and that of the log have in common; there it says what they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ClassVar

from audit.checkpoint import LogSigner
from gateway.gate import Gate
from gateway.rollover.places import Stage
from gateway.rollover.progress import Holdings, Progress, migrations_since_before, own_hosts, who_holds
from gateway.rollover.signing_keys import SigningKeys

Change = Callable[[Callable[[], None]], Awaitable[None]]


class SigningKeyRollover(ABC):
    """`change`: do something to the files in a thread, and tell relays what is in them then. `signer`: of the log, in
    this process. `evacuation_seconds`: for how long hosts may hold permits that were given beforehand.
    """

    breaks: ClassVar[str]
    left_after: ClassVar[str]  # for the operator, once it is retired

    def __init__(
        self,
        keys: SigningKeys,
        *,
        gate: Gate,
        signer: LogSigner,
        holdings: Holdings,
        change: Change,
        evacuation_seconds: int,
    ) -> None:
        self._keys = keys
        self._gate = gate
        self._signer = signer
        self._holdings = holdings
        self._change = change
        self._evacuation_seconds = evacuation_seconds

    @property
    @abstractmethod
    def current(self) -> str:
        """What signs in this process, as relays say which they hold."""

    @abstractmethod
    def _switch(self) -> None: ...

    @property
    def stage(self) -> Stage:
        return self._keys.places.stage

    def facts(self) -> dict[str, Any]:
        facts = {"current": {"key": self.current}}
        return {**facts, "next": {"key": self._keys.places.note}} if self.stage is Stage.BEGUN else facts

    def check_begin(self) -> None:
        self._keys.places.require_writable()

    def ready_to_switch(self) -> Progress:
        return who_holds(
            own_hosts(self._gate), self._gate.dispatch, self._holdings, frozenset({self._keys.places.note})
        )

    def ready_to_retire(self) -> Progress:
        """No migration, and no evacuation that was prepared, may still need a permit that the former one made good."""
        switched = self._keys.places.switched_at
        waits = migrations_since_before(self._gate, switched)
        if (left := switched + self._evacuation_seconds - self._gate.clock.wall().timestamp()) > 0:
            waits.append(f"evacuation permits of before may be held for another {left / 3600:.1f} h")
        progress = who_holds(own_hosts(self._gate), self._gate.dispatch, self._holdings, frozenset({self.current}))
        return replace(progress, waits=tuple(waits))

    async def begin(self) -> None:
        await self._change(self._begin)

    def _begin(self) -> None:
        terms, signer = self._gate.terms, self._signer
        self._keys.prepare()
        self._keys.introduce_next((terms.key_id, terms.private_key), (signer.key_id, signer.sign))
        self._keys.places.begin(self._keys.name(self._keys.places.next))
        self._keys.write_public()

    async def switch(self) -> None:
        await self._change(self._switch)

    async def retire(self) -> str:
        await self._change(self._retire)
        return self.left_after

    def _retire(self) -> None:
        self._keys.retire()
        self._keys.write_public()

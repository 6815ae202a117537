"""The key that seals permits: the steps of its rollover, each at once and without a restart.

begin    the next key, introduced by the keys of permits and of the log that are in force
switch   permits are sealed with it
retire   relays believe no permit of the former one, which is destroyed
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from audit.checkpoint import LogSigner
from gateway.gate import Gate
from gateway.rollover.places import Stage
from gateway.rollover.progress import Holdings, Progress, migrations_since_before, own_hosts, who_holds
from gateway.rollover.signing_keys import SigningKeys
from policy.jws import key_id_of

Change = Callable[[Callable[[], None]], Awaitable[None]]


class PermitKeyRollover:
    """`change`: do something to the files in a thread, and tell relays what is in them then.

    `evacuation_seconds`: for how long hosts may hold permits that were given beforehand.
    """

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
        self._evacuation_seconds = evacuation_seconds
        self._keys = keys
        self._gate = gate
        self._signer = signer
        self._holdings = holdings
        self._change = change

    @property
    def stage(self) -> Stage:
        return self._keys.places.stage

    @property
    def breaks(self) -> str:
        return "relays that do not believe the key refuse every permit that it sealed"

    def facts(self) -> dict[str, Any]:
        facts = {"current": {"key": f"permit:{self._gate.terms.key_id}"}}
        return {**facts, "next": {"key": self._keys.places.note}} if self.stage is Stage.BEGUN else facts

    def check_begin(self) -> None:
        self._keys.places.require_writable()

    def ready_to_switch(self) -> Progress:
        return who_holds(own_hosts(self._gate), self._holdings, frozenset({self._keys.places.note}))

    def ready_to_retire(self) -> Progress:
        """No migration that it permitted may still need its permit: to resume, to recover, to be settled."""
        current = frozenset({f"permit:{self._gate.terms.key_id}"})
        progress = who_holds(own_hosts(self._gate), self._holdings, current)
        return replace(progress, waits=waits_for_permits(self._gate, self._keys, self._evacuation_seconds))

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

    def _switch(self) -> None:
        key = self._keys.read(self._keys.places.next)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._keys.places.switch()
        self._gate.terms = replace(self._gate.terms, private_key=key, key_id=key_id_of(key.public_key()))
        self._keys.write_public()

    async def retire(self) -> str:
        await self._change(self._retire)
        return "destroy what is left of the old key: in backups, or in its token"

    def _retire(self) -> None:
        self._keys.retire()
        self._keys.write_public()


def waits_for_permits(gate: Gate, keys: SigningKeys, evacuation_seconds: int) -> tuple[str, ...]:
    """What may still need a permit that the former of `keys` made good: migrations, evacuations that were prepared."""
    switched = keys.places.switched_at
    waits = migrations_since_before(gate, switched)
    if (left := switched + evacuation_seconds - gate.clock.wall().timestamp()) > 0:
        waits.append(f"evacuation permits of before may be held for another {left / 3600:.1f} h")
    return tuple(waits)

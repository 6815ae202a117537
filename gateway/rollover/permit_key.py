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
from gateway.rollover.progress import Holdings, Progress, who_holds
from gateway.rollover.signing_keys import SigningKeys
from policy.jws import key_id_of

Change = Callable[[Callable[[], None]], Awaitable[None]]


class PermitKeyRollover:
    """`change`: do something to the files in a thread, and tell relays what is in them then."""

    def __init__(self, keys: SigningKeys, *, gate: Gate, signer: LogSigner, holdings: Holdings, change: Change) -> None:
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
        return who_holds(self._gate.inventory.hosts, self._holdings, frozenset({self._keys.places.note}))

    def ready_to_retire(self) -> Progress:
        """No migration that it permitted may still need its permit: to resume, to recover, to be settled."""
        return under_former_key(self._gate, self._holdings, f"permit:{self._gate.terms.key_id}", self._keys)

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


def under_former_key(gate: Gate, holdings: Holdings, current: str, keys: SigningKeys) -> Progress:
    """Who is not ready for the end of a former key: hosts that do not hold the current one, and running migrations."""
    progress = who_holds(gate.inventory.hosts, holdings, frozenset({current}))
    lacking = dict(progress.lacking)
    switched = keys.places.switched_at
    for each in gate.migrations.active(int(gate.clock.wall().timestamp())):
        if each.decided <= switched and each.source is not None:
            lacking.setdefault(each.source, f"migration {each.migration_id} was permitted with the old key")
    return Progress(progress.hosts, lacking)

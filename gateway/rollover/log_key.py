"""The key that signs records and checkpoints: the steps of its rollover. The new one comes into force by a restart.

begin    the next key, introduced by the keys of permits and of the log that are in force
switch   the log's folder names the next key as the successor; from the next start it signs, the former one beside it
retire   relays believe no checkpoint of the former one, which is destroyed
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from audit.checkpoint import LogSigner
from audit.log_keys import KEYS_FILE, read_successors, successor_line
from certs.files import write_atomically
from gateway.gate import Gate
from gateway.rollover.permit_key import waits_for_permits
from gateway.rollover.places import Stage
from gateway.rollover.progress import Holdings, Progress, own_hosts, who_holds
from gateway.rollover.signing_keys import SigningKeys

Change = Callable[[Callable[[], None]], Awaitable[None]]


class LogKeyRollover:
    """`signer`: what signs in this process. `log`: the log's folder. The rest is as of `PermitKeyRollover`."""

    def __init__(  # noqa: PLR0913 - its pieces
        self,
        keys: SigningKeys,
        *,
        gate: Gate,
        signer: LogSigner,
        log: Path,
        holdings: Holdings,
        change: Change,
        evacuation_seconds: int,
    ) -> None:
        self._keys = keys
        self._gate = gate
        self._signer = signer
        self._log = log
        self._holdings = holdings
        self._change = change
        self._evacuation_seconds = evacuation_seconds

    @property
    def stage(self) -> Stage:
        return self._keys.places.stage

    @property
    def breaks(self) -> str:
        return "relays that do not believe the key refuse every permit whose proof it signed alone"

    def facts(self) -> dict[str, Any]:
        facts = {"current": {"key": self._signing, "public": self._signer.vkey}}
        return {**facts, "next": {"key": self._keys.places.note}} if self.stage is Stage.BEGUN else facts

    def check_begin(self) -> None:
        self._keys.places.require_writable()

    def ready_to_switch(self) -> Progress:
        return who_holds(own_hosts(self._gate), self._holdings, frozenset({self._keys.places.note}))

    def ready_to_retire(self) -> Progress:
        progress = who_holds(own_hosts(self._gate), self._holdings, frozenset({self._signing}))
        waits = waits_for_permits(self._gate, self._keys, self._evacuation_seconds)
        if self._signer.former is None:  # else the log would go on under a key that nobody believes
            waits = ("this gateway was not started again since the switch", *waits)
        return replace(progress, waits=waits)

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
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        line = successor_line(self._signer, LogSigner(self._signer.origin, key))
        known = read_successors(self._log)
        if line not in known:  # Ed25519 is deterministic: a step that is taken again says the same
            write_atomically(self._log / KEYS_FILE, (known + line).encode())
        self._keys.places.switch()
        self._keys.write_public()

    async def retire(self) -> str:
        await self._change(self._retire)
        return (
            "restart the gateway, so that the old key signs no more; destroy what is left of it in backups or its token"
        )

    def _retire(self) -> None:
        self._keys.retire()
        self._keys.write_public()

    @property
    def _signing(self) -> str:
        return f"log:{self._signer.key_id}"

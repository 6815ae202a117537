"""The key that signs records and checkpoints: the steps of its rollover. The new one comes into force by a restart.

begin    the next key, introduced by the keys of permits and of the log that are in force
switch   the log's folder names the next key as the successor; from the next start it signs, the former one beside it
retire   relays believe no checkpoint of the former one, which is destroyed
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from audit.checkpoint import LogSigner
from audit.log_keys import KEYS_FILE, read_successors, successor_line
from certs.files import write_atomically
from gateway.rollover.progress import Progress
from gateway.rollover.signing_key_rollover import SigningKeyRollover
from gateway.rollover.signing_keys import SigningKeys


class LogKeyRollover(SigningKeyRollover):
    """`log`: the log's folder."""

    breaks = "relays that do not believe the key refuse every permit whose proof it signed alone"
    left_after = (
        "restart the gateway, so that the old key signs no more; destroy what is left of it in backups or its token"
    )

    def __init__(self, keys: SigningKeys, *, log: Path, **pieces: Any) -> None:
        super().__init__(keys, **pieces)
        self._log = log

    @property
    def current(self) -> str:
        return f"log:{self._signer.key_id}"

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        return {**facts, "current": {**facts["current"], "public": self._signer.vkey}}

    def ready_to_retire(self) -> Progress:
        progress = super().ready_to_retire()
        if self._signer.former is not None:
            return progress
        # Else the log would go on under a key that nobody believes.
        return replace(progress, waits=("this gateway was not started again since the switch", *progress.waits))

    def _switch(self) -> None:
        key = self._keys.read(self._keys.places.next)
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        line = successor_line(self._signer, LogSigner(self._signer.origin, key)).encode()
        known = read_successors(self._log)
        if line not in known:  # Ed25519 is deterministic: a step that is taken again says the same
            write_atomically(self._log / KEYS_FILE, known + line)
        self._keys.places.switch()
        self._keys.write_public()

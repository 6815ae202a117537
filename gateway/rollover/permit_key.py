"""The key that seals permits: the steps of its rollover, each at once and without a restart.

begin    the next key, introduced by the keys of permits and of the log that are in force
switch   permits are sealed with it
retire   relays believe no permit of the former one, which is destroyed
"""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from gateway.rollover.signing_key_rollover import SigningKeyRollover
from policy.jws import key_id_of


class PermitKeyRollover(SigningKeyRollover):
    breaks = "relays that do not believe the key refuse every permit that it sealed"
    left_after = "destroy what is left of the old key: in backups, or in its token"

    @property
    def current(self) -> str:
        return f"permit:{self._gate.terms.key_id}"

    def _switch(self) -> None:
        key = self._keys.read(self._keys.places.next)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._keys.places.switch()
        self._gate.terms = replace(self._gate.terms, private_key=key, key_id=key_id_of(key.public_key()))
        self._keys.write_public()

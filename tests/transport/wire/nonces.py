"""AES-GCM that never lets one nonce seal twice under one key."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from transport.wire import frames


def watch_nonces(monkeypatch: pytest.MonkeyPatch) -> set[tuple[bytes, bytes]]:
    """Every (key, nonce) by which a frame was sealed from now on; one that comes twice fails the test."""
    used: set[tuple[bytes, bytes]] = set()

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._key, self._cipher = key, AESGCM(key)

        def encrypt_into(self, nonce: bytes, data: Any, aad: Any, out: Any) -> int:
            assert (self._key, nonce) not in used, "a nonce repeats under its key"
            used.add((self._key, nonce))
            return self._cipher.encrypt_into(nonce, data, aad, out)

        def decrypt_into(self, nonce: bytes, data: Any, aad: Any, out: Any) -> int:
            return self._cipher.decrypt_into(nonce, data, aad, out)

    monkeypatch.setattr(frames, "AESGCM", Watched)
    return used

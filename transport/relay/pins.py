"""The keys of permits and logs that a relay believes: read from files, added to by introduction, dropped when told.

Each file of the configuration may hold several keys. What a gateway introduces and retires is written into all files of
that kind, so that a relay which is started anew believes the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit.checkpoint import LogVerifier
from audit.errors import AuditError
from certs.errors import CredentialError
from certs.files import write_atomically
from certs.key_introduction import Introduction, Statement, introduced_keys
from policy.permit import PermitKey

MAX_PINS: Final = 16
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pins:
    permit_keys: tuple[PermitKey, ...]
    log_verifiers: tuple[LogVerifier, ...]

    def names(self) -> list[str]:
        """As the gateway knows them."""
        return [_permit_name(key) for key in self.permit_keys] + [_log_name(log) for log in self.log_verifiers]

    def after(self, introductions: Sequence[Introduction], retired: Sequence[str]) -> Pins:
        """With what these introduce, and without what is retired. Raises `CredentialError` if a kind had none left."""
        permit_keys = {key.key_id: key for key in self.permit_keys}
        logs = {log.key_id.hex(): log for log in self.log_verifiers}
        known: dict[str, ec.EllipticCurvePublicKey] = {name: key.public_key for name, key in permit_keys.items()}
        verifies = {name: log.verifies for name, log in logs.items()}
        origins = {log.origin for log in self.log_verifiers}

        def learn(statement: Statement) -> None:
            if statement.what == "permit":
                key = _permit_key(statement.key)
                permit_keys.setdefault(key.key_id, key)
                known.setdefault(key.key_id, key.public_key)
                return
            log = _log(statement.key)
            if log.origin not in origins:  # a new key of a log that is known, never another log
                raise CredentialError(None, f"a key of {log.origin!a} was introduced", "look at the gateway")
            logs.setdefault(log.key_id.hex(), log)
            verifies.setdefault(log.key_id.hex(), log.verifies)

        introduced_keys(introductions, known, verifies, learn)
        left = Pins(
            tuple(key for key in permit_keys.values() if _permit_name(key) not in retired),
            tuple(log for log in logs.values() if _log_name(log) not in retired),
        )
        for kind in (left.permit_keys, left.log_verifiers):
            if not 1 <= len(kind) <= MAX_PINS:
                raise CredentialError(None, f"{len(kind)} keys would be pinned of a kind", "look at the gateway")
        return left

    def write(self, permit_files: Sequence[Path], log_files: Sequence[Path]) -> None:
        """Into each of the files, all of its kind."""
        permits = b"".join(
            key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in self.permit_keys
        )
        logs = "".join(f"{log.vkey}\n" for log in self.log_verifiers).encode()
        for files, data in ((permit_files, permits), (log_files, logs)):
            for file in files:
                write_atomically(file, data)


def read_pins(permit_files: Sequence[Path], log_files: Sequence[Path]) -> Pins:
    """Raises `AuditError`, OSError, ValueError: for the operator."""
    permit_keys = [key for file in permit_files for key in _permit_keys_in(file)]
    logs = [LogVerifier.parse(line) for file in log_files for line in file.read_text().splitlines() if line.strip()]
    if not permit_keys or not logs:
        raise ValueError("a file of pinned keys is empty")
    return Pins(
        tuple({key.key_id: key for key in permit_keys}.values()), tuple({log.vkey: log for log in logs}.values())
    )


def _permit_keys_in(file: Path) -> list[PermitKey]:
    text = file.read_text()
    found = _PEM.findall(text)
    if not found or _PEM.sub("", text).strip():  # else what a reader sees there would not be what is believed
        raise ValueError(f"{file} does not hold PEM public keys and nothing else")
    return [PermitKey.from_pem(pem.encode()) for pem in found]


def _permit_key(pem: str) -> PermitKey:
    try:
        return PermitKey.from_pem(pem.encode())
    except ValueError as error:
        raise CredentialError(None, f"an introduced permit key is none: {error}", "look at the gateway") from None


def _log(vkey: str) -> LogVerifier:
    try:
        return LogVerifier.parse(vkey)
    except AuditError as error:
        raise CredentialError(None, f"an introduced log key is none: {error}", "look at the gateway") from None


def _permit_name(key: PermitKey) -> str:
    return f"permit:{key.key_id}"


def _log_name(log: LogVerifier) -> str:
    return f"log:{log.key_id.hex()}"

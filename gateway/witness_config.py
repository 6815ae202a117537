"""The configuration of `sealane audit witness serve`: TOML, strict; paths are relative to the file.

[witness]
listen = "192.0.2.50:9443"
name = "witness.bank.example/w1"
state_dir = "state"
keys = ["ed25519.key", "ml-dsa-44.key"]      # PKCS#8 PEM, 0600: one of each kind at most

[tls]
certificate = "tls.pem"
private_key = "tls.key"

[[logs]]
keys = ["gateway-a.vkey"]                    # C2SP verifier keys of one log: files, or the keys themselves
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from msgspec import Meta

from audit.checkpoint import LogVerifier
from audit.cosignature import Cosigner
from audit.errors import CheckpointError
from certs.errors import CertificateError
from certs.files import read_private_key
from gateway.config import Address, parse_address
from gateway.errors import ConfigRefused
from gateway.network_words import words_of_failure
from policy.settings import SettingRefused, decode_settings

MAX_KEY_FILE_BYTES = 64 * 1024
Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Keys = Annotated[tuple[Text, ...], Meta(min_length=1, max_length=16)]
Count = Annotated[int, Meta(ge=1, le=10_000)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class WitnessTable(_Table, frozen=True):
    listen: Text
    name: Annotated[str, Meta(min_length=1, max_length=255)]
    state_dir: Text
    keys: Keys


class TlsTable(_Table, frozen=True):
    certificate: Text
    private_key: Text


class LogTable(_Table, frozen=True):
    keys: Keys


class LimitsTable(_Table, frozen=True):
    connections: Count = 256
    connections_per_address: Count = 32
    handshake_seconds: Count = 5
    request_seconds: Count = 10


class WitnessFile(_Table, frozen=True):
    witness: WitnessTable
    tls: TlsTable
    logs: Annotated[tuple[LogTable, ...], Meta(min_length=1, max_length=1024)]
    limits: LimitsTable = LimitsTable()


class WitnessConfig(msgspec.Struct, frozen=True):
    """What the file says, with all keys read. `certificate`, `private_key` and `state_dir` are absolute."""

    listen: Address
    state_dir: Path
    cosigners: tuple[Cosigner, ...]
    logs: dict[str, tuple[LogVerifier, ...]]
    certificate: Path
    private_key: Path
    limits: LimitsTable


def load_witness_config(path: Path) -> WitnessConfig:
    """Errors: ConfigRefused, naming file and key."""
    try:
        file = decode_settings(path.read_bytes(), WitnessFile)
    except OSError as error:
        raise ConfigRefused(path, "", f"cannot be read: {error.strerror}") from error
    except SettingRefused as error:
        raise ConfigRefused(path, error.key, error.problem) from None
    folder = path.parent.resolve()
    try:
        listen = parse_address(file.witness.listen)
    except ValueError as error:
        raise ConfigRefused(path, "witness.listen", str(error)) from error
    return WitnessConfig(
        listen=listen,
        state_dir=folder / file.witness.state_dir,
        cosigners=_cosigners(path, folder, file.witness),
        logs=_logs(path, folder, file.logs),
        certificate=folder / file.tls.certificate,
        private_key=_private(path, folder / file.tls.private_key),
        limits=file.limits,
    )


def read_vkeys(folder: Path, given: Sequence[str]) -> list[str]:
    """The verifier keys in `given`: each is a key itself, or a file with one on each line. Errors: ValueError."""
    keys: list[str] = []
    for one in given:
        if one.count("+") >= 2 and not (folder / one).exists():
            keys.append(one)
            continue
        try:
            with (folder / one).open("rb") as file:
                keys += [line for line in file.read(MAX_KEY_FILE_BYTES).decode("ascii").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{one}: neither a readable file of verifier keys nor a key ({words_of_failure(error)})"
            ) from error
    return keys


def _cosigners(path: Path, folder: Path, table: WitnessTable) -> tuple[Cosigner, ...]:
    found: list[Cosigner] = []
    for name in table.keys:
        try:
            key = read_private_key(folder / name)
            if not isinstance(key, Ed25519PrivateKey | MLDSA44PrivateKey):
                raise ConfigRefused(path, "witness.keys", f"{name} is neither an Ed25519 nor an ML-DSA-44 key")
            found.append(Cosigner(table.name, key))
        except (CertificateError, CheckpointError) as error:
            raise ConfigRefused(path, "witness.keys", str(error)) from error
    if len({one.key.algorithm for one in found}) < len(found):
        raise ConfigRefused(path, "witness.keys", "two keys of one kind; run a witness of another name for the second")
    return tuple(found)


def _logs(path: Path, folder: Path, tables: Sequence[LogTable]) -> dict[str, tuple[LogVerifier, ...]]:
    logs: dict[str, tuple[LogVerifier, ...]] = {}
    for table in tables:
        try:
            verifiers = tuple(map(LogVerifier.parse, read_vkeys(folder, table.keys)))
        except (ValueError, CheckpointError) as error:
            raise ConfigRefused(path, "logs.keys", str(error)) from error
        if len({one.origin for one in verifiers}) != 1:
            raise ConfigRefused(path, "logs.keys", "one [[logs]] table holds the keys of one log")
        if verifiers[0].origin in logs:
            raise ConfigRefused(path, "logs", f"two tables for {verifiers[0].origin}")
        logs[verifiers[0].origin] = verifiers
    return logs


def _private(path: Path, key: Path) -> Path:
    try:
        read_private_key(key)  # by our own rule: the `ssl` module would take a key file that everybody can read
    except CertificateError as error:
        raise ConfigRefused(path, "tls.private_key", str(error)) from error
    return key

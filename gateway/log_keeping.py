"""The log and all that keeps it: what appends, what watches its files, what gets it witnessed; opened as one."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from audit.checkpoint import LogSigner, LogVerifier
from audit.cosignature import Cosigner, CosignerKey
from audit.errors import AuditError, CheckpointError
from audit.log import Log
from audit.verify_keys import joined_keys
from certs.errors import CertificateError
from certs.files import read_private_key
from gateway.committer import Committer
from gateway.composition.key_files import signing_kinds
from gateway.config import GatewayConfig, WitnessTable
from gateway.errors import StartRefused
from gateway.log_watching import LogWatching
from gateway.permitting import prove, prove_cosigned
from gateway.recording import Clock, Recorded, Recorder
from gateway.rollover.places import Stage
from gateway.rollover.signing_keys import SigningKeys
from gateway.witness_client import WitnessClient
from gateway.witness_config import read_vkeys
from gateway.witnessing import Witnessing, WitnessTerms
from policy.identity.jwks import https_client
from policy.permit import PermitProof


@dataclass(frozen=True, slots=True)
class LogKeeping:
    """An open log. `start` its tasks before anything is appended; `finish` after the last record.

    `witnessing` runs once the start is on record: what it finds may shut the log, and then no start would be.
    """

    signer: LogSigner
    verifiers: tuple[LogVerifier, ...]  # of every key that this log ever had
    committer: Committer
    recorder: Recorder
    watching: LogWatching
    witnessing: Witnessing

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.committer.run)
        await nursery.start(self.committer.keep_open)
        nursery.start_soon(self.watching.run, self.committer)

    async def finish(self) -> None:
        await self.watching.save(self.committer)

    @property
    def proving(self) -> Callable[[Recorded], Awaitable[PermitProof]]:
        """How a permit gets its proof: from its own commit, or with the cosignatures that the site requires."""
        if self.witnessing.terms.required:
            return partial(prove_cosigned, self.witnessing)
        return prove

    def health(self) -> dict[str, Any]:
        """For anyone, so it tells little."""
        status = "ok" if self.committer.failed_because is None else "log_unavailable"
        witnesses = {"witnesses": self.witnessing.ages()} if self.witnessing.clients else {}
        return {"status": status, "log_size": self.committer.size, "log_origin": self.signer.origin, **witnesses}


async def open_log_keeping(
    config: GatewayConfig, stack: AsyncExitStack, clock: Clock, open_log: Callable[[], Log] | None
) -> LogKeeping:
    """Open (and recover) the log that the configuration names. Errors: StartRefused."""
    signer = log_signer(config)
    directory = config.path(config.log.directory)
    state_dir = config.path(config.gateway.state_dir)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        what = "is a file, not a folder" if isinstance(error, FileExistsError) else f"cannot be made: {error.strerror}"
        raise StartRefused(f"gateway.state_dir: {state_dir} {what}") from error
    watching = LogWatching(directory, state_dir / "log-seen", signer, config.log.watch_seconds)
    opening = watching.opening(open_log or partial(Log.open, directory, signer))
    committer = Committer(opening, config.limits.log_queue)
    try:
        await committer.open()
    except (AuditError, OSError) as error:
        raise StartRefused(f"the audit log cannot be opened: {error}") from error
    stack.push_async_callback(_shielded, committer.close)
    recorder = Recorder(committer, signer, secrets.token_hex(16), clock)
    committer.announce = recorder.of_outage
    witnessing = Witnessing(
        committer=committer,
        recorder=recorder,
        watching=watching,
        log_key=signer.verifier,
        clients=[await _witness(config, table, stack) for table in config.witnesses],
        terms=WitnessTerms(
            interval_seconds=config.witnessing.interval_seconds,
            request_seconds=config.witnessing.request_seconds,
            max_age_seconds=config.witnessing.max_age_seconds,
            required=config.witnessing.required,
        ),
        published_file=directory / "cosigned",
        ml_dsa=_ml_dsa(config),
    )
    return LogKeeping(signer, every_key(directory, signer), committer, recorder, watching, witnessing)


async def _witness(config: GatewayConfig, table: WitnessTable, stack: AsyncExitStack) -> WitnessClient:
    url = table.url
    try:
        keys = tuple(CosignerKey.parse(vkey) for vkey in read_vkeys(config.directory, table.keys))
        bundle = str(config.path(table.trust_bundle)) if table.trust_bundle else None
        client = https_client(bundle)
    except (ValueError, OSError, CheckpointError) as error:
        raise StartRefused(f"witness {url}: {error}") from error
    if len({key.name for key in keys}) != 1:
        raise StartRefused(f"witness {url}: its keys have different names; one witness has one name")
    return WitnessClient(keys[0].name, url.rstrip("/"), keys, await stack.enter_async_context(client))


def every_key(directory: Path, signer: LogSigner) -> tuple[LogVerifier, ...]:
    """Of the log in `directory`, that it ever had. Errors: StartRefused."""
    try:
        return tuple(map(LogVerifier.parse, joined_keys(directory, [each.vkey for each in signer.verifiers]).every))
    except (ValueError, OSError, AuditError) as error:
        raise StartRefused(f"{directory}/keys cannot be used: {error}") from error


def log_signer(config: GatewayConfig) -> LogSigner:
    """With the former key, while that still counts. Errors: StartRefused."""
    _, keys = signing_kinds(config)
    try:
        former = LogSigner(config.log.origin, _ed25519(keys, keys.places.former)) if _is_switched(keys) else None
        return LogSigner(config.log.origin, _ed25519(keys, keys.places.current), former)
    except CertificateError as error:
        raise StartRefused(str(error)) from error


def _is_switched(keys: SigningKeys) -> bool:
    return keys.places.stage is Stage.SWITCHED


def _ed25519(keys: SigningKeys, path: Path) -> ed25519.Ed25519PrivateKey:
    key = keys.read(path)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key


def _ml_dsa(config: GatewayConfig) -> Cosigner | None:
    if config.log.ml_dsa_signing_key is None:
        return None
    path = config.path(config.log.ml_dsa_signing_key)
    key = _private_key(path)
    if not isinstance(key, MLDSA44PrivateKey):
        raise StartRefused(f"{path}: is not an ML-DSA-44 key")
    return Cosigner(config.log.origin, key)


def _private_key(path: Path) -> object:
    try:
        return read_private_key(path)
    except CertificateError as error:
        raise StartRefused(str(error)) from error


async def _shielded(close: Callable[[], Awaitable[None]]) -> None:
    with trio.CancelScope(shield=True):
        await close()

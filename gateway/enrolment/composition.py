"""The office as configured, or none: without [enrolment] hosts are certified by hand or by an outside CA."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit.checkpoint import LogSigner
from certs.authority import Authority
from certs.errors import CertificateError
from certs.files import read_certificates, read_passphrase
from gateway.config import EnrolmentTable, GatewayConfig
from gateway.enrolment.office import Office, Terms
from gateway.enrolment.register import Register
from gateway.errors import StartRefused
from gateway.gate import Gate
from gateway.hosts_seen import HostsSeen


def make_office(
    config: GatewayConfig,
    gate: Gate,
    signer: LogSigner,
    seen: HostsSeen,
    publish: Callable[[], Awaitable[None]],
    stack: AsyncExitStack,
) -> Office | None:
    """Errors: StartRefused, naming the file."""
    table = config.enrolment
    if table is None:
        return None
    try:
        passphrase = None if table.passphrase_file is None else read_passphrase(config.path(table.passphrase_file))
        authority = Authority.load(config.path(table.authority), passphrase)
        root = read_certificates(_root_file(config, table))[0]
        register = Register(config.path(config.gateway.state_dir) / "hosts.sqlite")
    except (CertificateError, sqlite3.Error, OSError) as error:
        raise StartRefused(f"enrolment: {error}") from error
    stack.callback(register.close)
    if authority.crl_file.resolve() not in {config.path(name).resolve() for name in config.tls.crls}:
        # Else a revocation would reach neither this gateway nor its relays.
        raise StartRefused(f"tls.crls does not name {authority.crl_file}, the CRL of [enrolment] authority")
    terms = Terms(root, table.token_minutes, timedelta(hours=table.host_hours), _pinned(gate, signer))
    return Office(gate, authority, register, terms, seen, publish, time.monotonic)


def _root_file(config: GatewayConfig, table: EnrolmentTable) -> Path:
    if table.gateway_root is not None:
        return config.path(table.gateway_root)
    folder = config.path(table.authority)
    return folder / "root.pem" if (folder / "root.pem").exists() else folder / "ca.pem"


def _pinned(gate: Gate, signer: LogSigner) -> dict[str, Any]:
    permit_key = gate.terms.private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {"permit_keys": [permit_key.decode()], "log_keys": [signer.vkey]}

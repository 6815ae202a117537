"""The office as configured, or none: without [enrolment] hosts are certified by hand or by an outside CA."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial

from cryptography import x509

from certs.errors import CertificateError
from certs.files import read_certificates, read_passphrase
from gateway.composition.key_files import signing_kinds
from gateway.config import EnrolmentTable, GatewayConfig
from gateway.enrolment.office import Office, Terms
from gateway.enrolment.register import Register
from gateway.errors import StartRefused
from gateway.gate import Gate
from gateway.hosts_seen import HostsSeen
from gateway.rollover.authorities import Authorities, root_that_certified
from gateway.rollover.places import Places
from gateway.rollover.signing_keys import pinned
from gateway.rollover.telling import root_of


def make_office(
    config: GatewayConfig,
    gate: Gate,
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
        authorities = Authorities.load(config.path(table.authority), passphrase)
        root = gateway_root(config, table)
        register = Register(config.path(config.gateway.state_dir) / "hosts.sqlite")
    except (CertificateError, sqlite3.Error, OSError) as error:
        raise StartRefused(f"enrolment: {error}") from error
    stack.callback(register.close)
    if authorities.current.crl_file.resolve() not in {config.path(name).resolve() for name in config.tls.crls}:
        # Else a revocation would reach neither this gateway nor its relays.
        raise StartRefused(f"tls.crls does not name {authorities.current.crl_file}, the CRL of [enrolment] authority")
    terms = Terms(root, table.token_minutes, timedelta(hours=table.host_hours), pinned(*signing_kinds(config)))
    read_root = partial(gateway_root, config, table)
    return Office(gate, authorities, register, terms, seen, publish, time.monotonic, read_root)


def gateway_root(config: GatewayConfig, table: EnrolmentTable) -> x509.Certificate:
    """The root that vouches for the gateway's certificate as it is now. Raises `CredentialError`."""
    if table.gateway_root is not None:
        return read_certificates(config.path(table.gateway_root))[0]
    places = Places(config.path(table.authority))
    roots = [root_of(folder) for folder in (places.current, *places.beside())]
    return root_that_certified(config.path(config.tls.certificate), roots)

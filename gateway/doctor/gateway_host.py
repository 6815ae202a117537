"""All that is looked at on the host of a gateway, by its configuration file. Needs the [gateway] extra."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import gateway.config as configuration
from certs.authority import Authority
from certs.errors import CertificateError
from certs.files import is_folder, read_passphrase
from gateway.composition.key_files import signing_kinds
from gateway.config import GatewayConfig
from gateway.counted import counted
from gateway.doctor.credentials import (
    OF_THE_CA,
    certificate_findings,
    crl_findings,
    folder_finding,
    key_finding,
    site_findings,
)
from gateway.doctor.finding import Finding
from gateway.doctor.machine import open_files, suid_dumps, swap
from gateway.doctor.network import listen_finding
from gateway.doctor.pairs import name_finding, pair_findings
from gateway.doctor.service_user import as_service_user
from gateway.errors import ConfigRefused, StartRefused
from gateway.reloading import load_policy
from gateway.rollover.places import Places, Stage
from gateway.siem.line_tables import FileTable
from policy.errors import DirectoryRefused, InventoryRefused
from policy.identity.local import LocalDirectory
from policy.inventory import Inventory

FREE_BYTES: Final = 1 << 30
CONNECTIONS_OF_A_HOST: Final = 2


def gateway_host_findings(path: Path, root: Path, now: datetime) -> Iterator[Finding]:
    yield swap(root)
    yield suid_dumps(root)
    yield open_files()
    try:
        config = configuration.load(path)
    except ConfigRefused as error:
        yield Finding("configuration", "wrong", error.detail, error.next_step)
        return
    try:
        with as_service_user(config.path(config.gateway.state_dir)):
            found = list(_as_the_service(path, now))
    except StartRefused as error:
        found = [Finding("configuration", "wrong", error.detail, error.next_step)]
    yield from found
    yield listen_finding(config.listen.host, config.listen.port)


def _as_the_service(path: Path, now: datetime) -> Iterator[Finding]:
    """All that the gateway reads, its configuration included: root may have read one that the service may not."""
    try:
        config = configuration.load(path)
    except ConfigRefused as error:
        yield Finding("configuration", "wrong", error.detail, error.next_step)
        return
    yield Finding("configuration", "ok", f"{path} is understood")
    yield key_finding(config.path(config.tls.private_key), OF_THE_CA)
    yield from _signing_keys(config)
    yield from certificate_findings(config.path(config.tls.certificate), now, OF_THE_CA)
    yield from pair_findings(config.path(config.tls.certificate), config.path(config.tls.private_key))
    if (found := name_finding(config.path(config.tls.certificate), config.listen.host)) is not None:
        yield found
    yield from _people(config)
    yield from _authority(config, now)
    yield from crl_findings([config.path(name) for name in config.tls.crls], now)
    for site in config.sites:
        yield from site_findings(site.trust_domain, config.path(site.bundle), [config.path(site.crls)], now)
    yield folder_finding(config.path(config.gateway.state_dir), 0o700)
    yield folder_finding(config.path(config.log.directory), 0o750)
    yield from _line_files(config)
    yield _space(config)
    yield from _policy(config)


def _people(config: GatewayConfig) -> Iterator[Finding]:
    """Those of the gateway's own file, and the key that signs their tokens: it does not start without."""
    table, name = config.identity.local_issuer, config.identity.local_directory
    if table is None or name is None:
        return
    yield key_finding(config.path(table.signing_key), "make it as docs/identity.md says: openssl genpkey")
    try:
        people = LocalDirectory.load(config.path(name))
    except DirectoryRefused as error:
        yield Finding("people", "wrong", str(error), "correct it: the gateway does not start")
        return
    yield Finding("people", "ok", f"{counted(len(people.people), 'account')} in {config.path(name)}")


def _line_files(config: GatewayConfig) -> Iterator[Finding]:
    """A gateway starts without them, as it does while any other receiver is away."""
    for table in config.siem.sinks:
        if isinstance(table, FileTable) and not is_folder(folder := config.path(table.path).parent):
            remedy = f"make {folder}, writable to who runs the gateway: nothing is delivered there until then"
            yield Finding("siem", "wrong", f"sink {table.name}: its file has no folder", remedy)


def _signing_keys(config: GatewayConfig) -> Iterator[Finding]:
    """Of permits and of the log: with a passphrase, or in a token, they are tried as the gateway does."""
    try:
        kinds = signing_kinds(config)
    except StartRefused as error:
        yield Finding("private_key", "wrong", error.detail, "correct the file of the passphrase")
        return
    for kind in kinds:
        current = kind.places.current
        try:
            kind.read(current)
        except CertificateError as error:
            yield Finding("private_key", "wrong", str(error), "correct it: the gateway does not start")
            continue
        yield Finding("private_key", "ok", f"{current} can be used and is private")
        if kind.places.stage in {Stage.BEGUN, Stage.SWITCHED}:
            message = f"the rollover of {current} is {kind.places.stage}"
            yield Finding("rollover", "attention", message, "go on: sealane certs rollover status")


def _authority(config: GatewayConfig, now: datetime) -> Iterator[Finding]:
    if (table := config.enrolment) is None:
        return
    folder = config.path(table.authority)
    yield from certificate_findings(folder / "ca.pem", now, OF_THE_CA)
    try:
        passphrase = None if table.passphrase_file is None else read_passphrase(config.path(table.passphrase_file))
        Authority.load(folder, passphrase)
    except CertificateError as error:
        yield Finding("authority", "wrong", str(error), "correct it: no host can enrol or renew")
        return
    yield Finding("authority", "ok", f"{folder} can issue and revoke hosts")
    if (stage := Places(folder).stage) in {Stage.BEGUN, Stage.SWITCHED}:
        yield Finding(
            "rollover", "attention", f"the rollover of {folder} is {stage}", "go on: sealane certs rollover status"
        )


def _space(config: GatewayConfig) -> Finding:
    """A full disk stops every admission."""
    folder = config.path(config.log.directory).absolute()  # which the first start makes, with what it lies in
    try:
        usage = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
    except OSError as error:
        return Finding("log_space", "unknown", f"{folder}: {error.strerror}")
    message = f"{usage.free >> 20} MiB are free for the log"
    if usage.free < FREE_BYTES:
        return Finding("log_space", "wrong", message, "make room: without it nothing is permitted")
    return Finding("log_space", "ok", message)


def _policy(config: GatewayConfig) -> Iterator[Finding]:
    try:
        bundle = load_policy(config)
    except StartRefused as error:
        yield Finding("policy", "wrong", error.detail, "correct the bundle")
    else:
        yield Finding("policy", "ok", f"bundle {bundle.name} version {bundle.version}, its tests pass")
    try:
        inventory = Inventory.load(config.path(config.policy.inventory))
    except InventoryRefused as error:
        yield Finding("inventory", "wrong", str(error), "correct the file; `sealane inventory check` tries all sources")
    else:
        yield Finding(
            "inventory",
            "ok",
            f"{counted(len(inventory.hosts), 'host')} and {counted(len(inventory.vms), 'VM')} in the file",
        )
        yield from _room_for_relays(config, len(inventory.hosts))


def _room_for_relays(config: GatewayConfig, hosts: int) -> Iterator[Finding]:
    """A relay keeps a connection for its poll, and now and then has another; beyond the bound they are turned away."""
    if (room := config.limits.connections) < CONNECTIONS_OF_A_HOST * hosts:
        needed = CONNECTIONS_OF_A_HOST * hosts + 256
        message = f"limits.connections is {room}, for {hosts} hosts that keep up to {CONNECTIONS_OF_A_HOST} each"
        yield Finding("connections", "attention", message, f"set it to {needed} or more: else relays are turned away")

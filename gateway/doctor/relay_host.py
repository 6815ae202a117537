"""All that is looked at on the host of a relay, by its configuration file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from certs.errors import CertificateError
from certs.tls import HostCredentials
from gateway.counted import counted
from gateway.doctor.credentials import (
    OF_A_HOST,
    certificate_findings,
    crl_findings,
    folder_finding,
    key_finding,
    site_findings,
)
from gateway.doctor.finding import Finding
from gateway.doctor.hypervisor import hypervisor_findings, libvirtd_finding
from gateway.doctor.machine import machine_findings
from gateway.doctor.network import gateway_findings, listen_finding, peer_findings
from gateway.doctor.pairs import pair_findings
from transport.errors import ConfigurationError
from transport.relay.address_book import AddressBookFile
from transport.relay.config import RelayConfig, load_relay_config, split_address
from transport.relay.host import qemu_uid_of


def relay_host_findings(path: Path, root: Path, now: datetime) -> Iterator[Finding]:
    yield from machine_findings(root)
    try:
        config = load_relay_config(path)
    except ConfigurationError as error:
        yield Finding("configuration", "wrong", str(error), "correct this file")
        return
    yield Finding("configuration", "ok", f"{path} is understood")
    yield from _identity(config, now)
    yield folder_finding(Path(config.relay.state_dir), 0o700)
    yield listen_finding(*split_address(config.relay.listen, "relay.listen"))
    identity = config.identity
    client = (Path(identity.certificate), Path(identity.private_key))
    for url in (config.gateway.url, *config.gateway.others):
        yield from gateway_findings(url, Path(config.gateway.trust_bundle), client)
    yield from _peers(config)
    moves_domains = config.hypervisor.kind == "libvirt"
    if moves_domains:
        yield _qemu_user(config.hypervisor.qemu_user)
        yield libvirtd_finding(Path(config.hypervisor.libvirt_socket))
    asks_libvirt = moves_domains or config.placement.libvirt_uri
    yield from hypervisor_findings(root, config.placement.virsh if asks_libvirt else None)


def _qemu_user(name: str) -> Finding:
    """Without it the relay does not start."""
    try:
        qemu_uid_of(name)
    except ConfigurationError as error:
        return Finding("qemu_user", "wrong", str(error), "install libvirt and QEMU first, or correct the name")
    return Finding("qemu_user", "ok", f"QEMU runs as {name}")


def _identity(config: RelayConfig, now: datetime) -> Iterator[Finding]:
    identity = config.identity
    crls = [Path(crl) for crl in identity.crls]
    yield key_finding(Path(identity.private_key), OF_A_HOST)
    yield from certificate_findings(Path(identity.certificate), now, OF_A_HOST)
    yield from pair_findings(Path(identity.certificate), Path(identity.private_key))
    yield from crl_findings(crls, now)
    for site in config.sites:
        yield from site_findings(site.trust_domain, Path(site.bundle), [Path(crl) for crl in site.crls], now)
    try:
        credentials = HostCredentials.load(
            Path(identity.certificate), Path(identity.private_key), Path(identity.trust_bundle), crls
        )
        credentials.require_usable(now)
    except CertificateError as error:
        yield Finding("identity", "wrong", str(error), "correct what it names: no peer would accept this host")
        return
    yield Finding("identity", "ok", f"this host is {credentials.spiffe_id}")


def _peers(config: RelayConfig) -> Iterator[Finding]:
    """The hosts of the kept address book, but this one."""
    book = AddressBookFile(Path(config.relay.state_dir)).book
    age = book.age_seconds(int(time.time()))
    if age is None:
        yield Finding(
            "address_book", "attention", "no address book is kept yet", "start the relay, with its gateway up"
        )
        return
    is_old = age > 86_400
    remedy = "see why the gateway is not reached" if is_old else ""
    yield Finding(
        "address_book", "attention" if is_old else "ok", f"{counted(len(book.hosts), 'host')}, {age} s old", remedy
    )
    peers = []
    for host in book.hosts:
        address, port = split_address(host.addresses[0].address, host.name)
        peers.append((host.name, address, port))
    yield from peer_findings(peers)

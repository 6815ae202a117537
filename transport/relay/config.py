"""The relay's configuration file: TOML, decoded once into a frozen tree, refused at start when anything is off."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from policy.settings import SettingRefused, decode_settings
from policy.settings.allowed import shown
from transport.errors import ConfigurationError
from transport.relay.config_sections import (
    FrontSection,
    GatewaySection,
    HypervisorSection,
    IdentitySection,
    MetricsSection,
    NetworkSection,
    PlacementSection,
    RelaySection,
    SiteSection,
)
from transport.relay.limits import LimitsSection
from transport.relay.named_ports import PortName, PortSection, port_problem
from transport.relay.vm_paths import has_placeholder


class RelayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`ports`: by name, see `named_ports`."""

    relay: RelaySection
    identity: IdentitySection
    gateway: GatewaySection
    hypervisor: HypervisorSection
    network: NetworkSection = NetworkSection()
    placement: PlacementSection = PlacementSection()
    front: FrontSection = FrontSection()
    metrics: MetricsSection = MetricsSection()
    limits: LimitsSection = LimitsSection()
    sites: Annotated[list[SiteSection], Meta(max_length=64)] = []
    ports: Annotated[dict[PortName, PortSection], Meta(max_length=64)] = {}


def load_relay_config(path: Path) -> RelayConfig:
    """Decode and check `path`; paths in it are relative to its folder. `ConfigurationError` says what to mend."""
    try:
        config = decode_settings(path.read_bytes(), RelayConfig)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file; `sealane relay enrol` writes it; docs/install.md shows one"
        ) from None
    except SettingRefused as error:
        raise ConfigurationError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    _check_hypervisor(path, config.hypervisor)
    _check_network(path, config.network)
    if config.identity.from_gateway and len(config.identity.crls) != 1:
        raise ConfigurationError(f"{path}: identity.crls must be one folder where from_gateway is true")
    _check_front(path, config)
    for name, port in config.ports.items():
        if problem := port_problem(name, port):
            raise ConfigurationError(f"{path}: ports.{name}: {problem}")
    if len({port.listens_at(name, "{uuid}") for name, port in config.ports.items()}) != len(config.ports):
        raise ConfigurationError(f"{path}: ports: two have the same listen; a program would meet the other's session")
    if len({site.trust_domain for site in config.sites}) != len(config.sites):
        raise ConfigurationError(f"{path}: [[sites]]: each trust domain once")
    split_address(config.relay.listen, f"{path}: relay.listen")
    _check_metrics(path, config.metrics)
    for key, url in (("url", config.gateway.url), *(("others", other) for other in config.gateway.others)):
        if not url.startswith("https://") or "@" in url:  # a password would stand in logs
            raise ConfigurationError(f"{path}: gateway.{key}: is {shown(url)}; allowed is https://HOST:PORT")
    return _resolved(config, path.resolve().parent)


def split_address(text: str, what: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port"; `ConfigurationError` naming `what` otherwise."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ConfigurationError(f"{what}: {shown(text)} is not host:port, with a port from 0 to 65535")
    return host, int(port)


def _check_metrics(path: Path, metrics: MetricsSection) -> None:
    if not metrics.listen:
        return
    address, _ = split_address(metrics.listen, f"{path}: metrics.listen")
    if not _is_loopback(address):
        # They say when this host moves guests, without TLS and to whoever asks.
        raise ConfigurationError(f"{path}: metrics.listen: {shown(address)} is not a loopback address")


def _check_front(path: Path, config: RelayConfig) -> None:
    front = config.front
    if front.loopback_network:
        _check_loopback_network(path, front.loopback_network)
    if not front.destinations:
        return
    if config.hypervisor.kind != "libvirt":
        raise ConfigurationError(f'{path}: [front] needs hypervisor.kind = "libvirt"')
    hosts = [destination.host for destination in front.destinations]
    loopbacks = [destination.loopback for destination in front.destinations if destination.loopback]
    if len(set(hosts)) != len(hosts) or len(set(loopbacks)) != len(loopbacks):
        raise ConfigurationError(f"{path}: front.destinations: each host and each loopback address once")
    for address in loopbacks:
        if not _is_loopback(address):
            # Whoever reaches it may ask for migrations: it must not be reachable from another host.
            raise ConfigurationError(
                f"{path}: front.destinations: {shown(address)} is not a loopback address (127.0.0.0/8)"
            )


def _check_loopback_network(path: Path, text: str) -> None:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        network = ipaddress.IPv4Network("0.0.0.0/0")
    if not network.is_loopback or network.prefixlen > 30:
        raise ConfigurationError(
            f"{path}: front.loopback_network: is {shown(text)}; allowed is a network within 127.0.0.0/8 of four "
            'addresses or more, such as "127.77.0.0/16", or "" for none'
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _check_hypervisor(path: Path, hypervisor: HypervisorSection) -> None:
    if hypervisor.kind == "libvirt":
        for prefix in hypervisor.domain_paths:
            if not prefix.startswith("/") or os.path.normpath(prefix) != prefix.rstrip("/"):
                raise ConfigurationError(
                    f"{path}: hypervisor.domain_paths: {shown(prefix)} is not a plain absolute path"
                )
        return
    key, template = (
        ("qmp_socket", hypervisor.qmp_socket)
        if hypervisor.kind == "qmp"
        else ("memory_socket", hypervisor.memory_socket)
    )
    if not has_placeholder(template):
        raise ConfigurationError(f"{path}: hypervisor.{key} must hold {{uuid}} once, and no other placeholder")


def _check_network(path: Path, network: NetworkSection) -> None:
    for key, text, kind, words in (
        ("bind_ipv4", network.bind_ipv4, ipaddress.IPv4Address, "IPv4"),
        ("bind_ipv6", network.bind_ipv6, ipaddress.IPv6Address, "IPv6"),
    ):
        try:
            if text:
                kind(text)
        except ValueError:
            raise ConfigurationError(
                f"{path}: network.{key}: is {shown(text)}; allowed is an {words} address of this host"
            ) from None


def _resolved(config: RelayConfig, folder: Path) -> RelayConfig:
    def at(text: str) -> str:
        return str(folder / text) if text else text

    identity, gateway, hypervisor, front = config.identity, config.gateway, config.hypervisor, config.front
    return msgspec.structs.replace(
        config,
        relay=msgspec.structs.replace(config.relay, state_dir=at(config.relay.state_dir)),
        identity=msgspec.structs.replace(
            identity,
            certificate=at(identity.certificate),
            private_key=at(identity.private_key),
            trust_bundle=at(identity.trust_bundle),
            crls=[at(crl) for crl in identity.crls],
        ),
        gateway=msgspec.structs.replace(
            gateway,
            trust_bundle=at(gateway.trust_bundle),
            permit_keys=[at(key) for key in gateway.permit_keys],
            log_keys=[at(key) for key in gateway.log_keys],
            witness_keys=[at(key) for key in gateway.witness_keys],
        ),
        hypervisor=msgspec.structs.replace(
            hypervisor,
            qmp_socket=at(hypervisor.qmp_socket),
            memory_socket=at(hypervisor.memory_socket),
            libvirt_socket=at(hypervisor.libvirt_socket),
            socket_dir=at(hypervisor.socket_dir),
        ),
        front=msgspec.structs.replace(
            front,
            folder=at(front.folder),
            session_socket=at(front.session_socket),
            token_file=at(front.token_file),
        ),
        sites=[
            msgspec.structs.replace(
                site,
                bundle=at(site.bundle),
                crls=[at(crl) for crl in site.crls],
                permit_keys=[at(key) for key in site.permit_keys],
                log_keys=[at(key) for key in site.log_keys],
            )
            for site in config.sites
        ],
    )

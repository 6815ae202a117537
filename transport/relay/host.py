"""What every session of this relay shares: configuration, identity, pinned keys and durable state."""

from __future__ import annotations

import os
import pwd
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from audit.cosignature import CosignerKey
from audit.errors import AuditError
from certs.errors import CertificateError
from certs.tls import HostCredentials
from policy.permit import VerifiedPermit
from transport.errors import ConfigurationError, OfferRefused, RefusalCode
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.moving import AS_CONFIGURED, PLAIN, How, Movement
from transport.libvirt_rpc.framing import Packet
from transport.relay.address_book import AddressBookFile
from transport.relay.bandwidth import HostBandwidth, Pace
from transport.relay.board import Board
from transport.relay.caller import Conversation
from transport.relay.config import RelayConfig
from transport.relay.config_sections import SiteSection
from transport.relay.cores import Cores, threads_for_this_host
from transport.relay.ends import RECOVERY_SOCKET, DestinationEnd, SourceEnd, session_folder
from transport.relay.evacuations import Evacuations
from transport.relay.identity import Identity
from transport.relay.interrupted import Interrupted, key_of
from transport.relay.lane_memory import LaneMemory, lane_memory_of
from transport.relay.libvirt_destination import LibvirtDestination
from transport.relay.libvirt_source import LibvirtSource
from transport.relay.limits import LimitsSection
from transport.relay.log_rate import LogRate
from transport.relay.metrics import metrics_text
from transport.relay.named_ports import PortSection
from transport.relay.outgoing import Leaving, leaving_of
from transport.relay.permits import PORTS_OF_KIND, PermitDesk, SitePins
from transport.relay.pins import read_pins
from transport.relay.places import Places
from transport.relay.qmp_destination import QmpDestination
from transport.relay.qmp_source import QmpSource
from transport.relay.refused_calls import RefusedCalls, refused_call
from transport.relay.socket_ends import SocketDestination, SocketSource
from transport.relay.spool import SessionJournal, Spool
from transport.relay.used_permits import UsedPermits
from transport.relay.vm_paths import MAX_UNIX_PATH, path_of

T = TypeVar("T")
_DISK_THREADS = 8


@dataclass(frozen=True, slots=True)
class RelayHost:
    """One relay process. Blocking work on the disk goes through `on_disk`, with a limiter of its own."""

    config: RelayConfig
    identity: Identity
    permits: PermitDesk
    spool: Spool
    used_permits: UsedPermits
    disk: trio.CapacityLimiter
    addresses: AddressBookFile
    evacuations: Evacuations
    qemu_uid: int = -1  # as whom QEMU runs, if not as the relay's own user
    refused_calls: RefusedCalls = field(default_factory=RefusedCalls)
    bandwidth: HostBandwidth = field(default_factory=HostBandwidth)
    cores: Cores = field(default_factory=lambda: Cores(0))
    log_rate: LogRate = field(default_factory=LogRate)
    interrupted: Interrupted = field(default_factory=Interrupted)
    memory: LaneMemory = field(default_factory=lambda: lane_memory_of(LimitsSection()))
    board: Board = field(default_factory=lambda: Board(Places(LimitsSection().max_moves)))
    _leaving: list[str] = field(default_factory=list)
    _untold: Counter[str] = field(default_factory=Counter)

    @property
    def credentials(self) -> HostCredentials:
        """As they are now; a connection takes them once."""
        return self.identity.credentials

    def metrics(self) -> str:
        """As they are now."""
        return metrics_text(self.board, self.identity.days_left(now()))

    def holds(self) -> list[str]:
        """Names of all that this host believes, by which the gateway sees how far a rollover is."""
        return [*self.identity.holds(), *self.permits.pins.names()]

    @property
    def spiffe_id(self) -> str:
        return str(self.credentials.spiffe_id)

    @property
    def control_socket(self) -> Path:
        """Where operators on this host reach the relay."""
        return Path(self.config.relay.state_dir) / "control.sock"

    @property
    def leaving_by(self) -> Leaving:
        """How connections to other relays leave this host, by the configuration and the newest address book."""
        return leaving_of(self.config.network, self.addresses.book.host(self.spiffe_id))

    def pace_of(self, permit: VerifiedPermit) -> Pace | None:
        """How fast a session may send: the lower of its permit and its share of the host. None: as fast as it can."""
        pace = Pace(permit.claims.limits.bandwidth_bytes_per_second, self.bandwidth)
        return pace if pace.is_limited else None

    async def on_disk(self, work: Any, *arguments: Any, **named: Any) -> Any:
        """Run blocking `work` in a thread. Not abandoned when cancelled: a durable write happens or does not."""
        return await trio.to_thread.run_sync(partial(work, *arguments, **named), limiter=self.disk)

    async def enter(self, journal: SessionJournal, state: str, **facts: object) -> None:
        """Durably enter a state; whoever is told of it is told after this. Survives cancellation whole."""
        with trio.CancelScope(shield=True):
            await self.on_disk(journal.append, state, **facts)

    @asynccontextmanager
    async def leaving(self, vm: str, *, is_recovered: bool = False) -> AsyncIterator[None]:
        """While a session of `vm` is owed an end here, no other may begin: it could run the guest at a third place.

        Raises `OfferRefused` (busy), but not to a session that was begun before.
        """
        if vm in self._leaving and not is_recovered:
            raise OfferRefused(RefusalCode.BUSY, f"another migration of VM {vm} from this host is not settled yet")
        self._leaving.append(vm)
        try:
            yield
        finally:
            self._leaving.remove(vm)

    @contextmanager
    def waiting_to_tell(self, destination: str) -> Iterator[int]:
        """While a destination is not told that a guest stays here; how many others wait to tell the same one."""
        self._untold[destination] += 1
        try:
            yield self._untold[destination] - 1
        finally:
            self._untold[destination] -= 1
            if not self._untold[destination]:
                del self._untold[destination]

    def port_source(self, permit: VerifiedPermit, listens_at: Path | None = None) -> SocketSource | None:
        """None if the permit is of no named port. `listens_at`: where the caller wants it, not where [ports] says."""
        name = permit.claims.named_port
        if name is None:
            return None
        port, patience = self.config.ports.get(name, PortSection()), self.config.limits.first_connection_seconds
        where = listens_at or port.listens_at(name, permit.claims.vm)
        return SocketSource(frozenset(port.peer_uids), name, where, patience)

    def source_end(
        self,
        permit: VerifiedPermit,
        facts: Mapping[str, Any],
        downtime_limit_ms: int,
        seconds: float,
        how: How = AS_CONFIGURED,
    ) -> SourceEnd:
        """`facts`: what the session's journal says, if it is not a new one. Its named port may be gone since."""
        section, limits = self.config.hypervisor, self.config.limits
        vm = permit.claims.vm
        if (port := self.port_source(permit)) is not None:
            return port
        if section.kind == "sockets":
            return SocketSource(frozenset(section.peer_uids), patience_seconds=limits.first_connection_seconds)
        if section.kind == "libvirt":
            return self.libvirt_source(permit, None, facts)
        has_disks = "disks" in permit.claims.ports
        settings = MigrationSettings(
            permit.claims.limits.bandwidth_bytes_per_second,
            how.downtime_limit_ms or downtime_limit_ms,
            how.movement,
            how.auto_converge,
            how.post_copy_bytes_per_second,
            has_disks,
        )
        process = str(facts.get("process", ""))
        source = QmpSource(path_of(section.qmp_socket, vm), vm, process, settings, limits.hypervisor_seconds).within(
            seconds, how
        )
        return source.with_disks() if has_disks else source

    def libvirt_source(
        self, permit: VerifiedPermit, conversation: Conversation | None, facts: Mapping[str, Any]
    ) -> LibvirtSource:
        """The end of a session that a client of libvirt drives. `facts`: as of `source_end`."""
        libvirt_socket = Path(self.config.hypervisor.libvirt_socket)
        seconds = self.config.limits.hypervisor_seconds
        client = partial(self.interrupted.client, key_of(permit.claims))
        return LibvirtSource(libvirt_socket, permit.claims.vm, seconds, self.qemu_uid, facts, client, conversation)

    def destination_end(
        self, permit: VerifiedPermit, facts: Mapping[str, Any], movement: Movement = PLAIN
    ) -> DestinationEnd:
        """`facts`: what the session's journal says, if it is not a new one. `movement`: what S's QEMU will do."""
        section, limits = self.config.hypervisor, self.config.limits
        vm = permit.claims.vm
        if (name := permit.claims.named_port) is not None:
            return SocketDestination(self.config.ports.get(name, PortSection()).connects_to(vm))
        if section.kind == "sockets":
            return SocketDestination(path_of(section.memory_socket, vm))
        if section.kind == "libvirt":
            return LibvirtDestination(
                Path(section.libvirt_socket),
                vm,
                section.domain_rules,
                limits.hypervisor_seconds,
                limits.migration_deadline_seconds,
                facts,
                self._refusing(permit),
                self.qemu_uid if self.qemu_uid >= 0 else os.geteuid(),
            )
        settings = MigrationSettings(permit.claims.limits.bandwidth_bytes_per_second, movement=movement)
        process = str(facts.get("process", ""))
        at = path_of(section.qmp_socket, vm)
        destination = QmpDestination(at, vm, process, settings, limits.hypervisor_seconds).remembering(facts)
        return destination.with_disks() if "disks" in permit.claims.ports else destination

    def _refusing(self, permit: VerifiedPermit) -> Callable[[str, Packet | None], None]:
        source, vm = permit.claims.source, permit.claims.vm
        return lambda cause, call: self.refused_calls.note(refused_call("destination", source, cause, call, vm))


def _witness_keys(files: Sequence[str]) -> Iterator[CosignerKey]:
    for name in files:
        yield from (CosignerKey.parse(line) for line in Path(name).read_text("ascii").splitlines() if line.strip())


def _pins_of(site: SiteSection, identity: Identity) -> SitePins:
    number = partial(identity.foreign_crl_number, site.trust_domain)
    pins = read_pins(list(map(Path, site.permit_keys)), list(map(Path, site.log_keys)))
    return SitePins(pins.permit_keys, pins.log_verifiers, number)


def open_host(config: RelayConfig) -> RelayHost:
    """Read every file that the configuration names; a bad one fails here, not at the first migration."""
    try:
        identity = Identity.open(config.identity, now(), tuple(config.sites))
        desk = _permit_desk(config, identity)
    except (CertificateError, AuditError) as error:
        raise ConfigurationError(str(error)) from None
    except OSError as error:
        raise ConfigurationError(f"a pinned key cannot be read: {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"a pinned key cannot be read: {error}") from None
    section = config.hypervisor
    qemu_uid = qemu_uid_of(section.qemu_user) if section.kind == "libvirt" else -1
    state_dir = Path(config.relay.state_dir)
    run_dir = Path(section.socket_dir) if section.kind == "libvirt" else None
    _require_short(state_dir, run_dir)
    spool = Spool(state_dir, run_dir)
    threads = config.limits.seal_threads
    return RelayHost(
        config=config,
        identity=identity,
        permits=desk,
        spool=spool,
        used_permits=UsedPermits(state_dir / "used-permits.sqlite"),
        disk=trio.CapacityLimiter(_DISK_THREADS),
        addresses=AddressBookFile(state_dir),
        evacuations=Evacuations(
            state_dir / "evacuations", desk, lambda: str(identity.credentials.spiffe_id), lambda: int(time.time())
        ),
        qemu_uid=qemu_uid,
        bandwidth=HostBandwidth(config.limits.bandwidth_bytes_per_second),
        cores=Cores(threads_for_this_host() if threads is None else threads),
        memory=lane_memory_of(config.limits),
        board=Board(Places(config.limits.max_moves)),
    )


def _permit_desk(config: RelayConfig, identity: Identity) -> PermitDesk:
    pins = read_pins(*pin_files(config))
    witnesses, required = tuple(_witness_keys(config.gateway.witness_keys)), config.gateway.witnesses_required
    if required > len({key.name for key in witnesses}):
        raise ConfigurationError("gateway.witnesses_required is more than there are witnesses in gateway.witness_keys")
    kind = config.hypervisor.kind
    return PermitDesk(
        trust_domain=identity.credentials.spiffe_id.trust_domain,
        sites={site.trust_domain: _pins_of(site, identity) for site in config.sites},
        permit_keys=pins.permit_keys,
        log_verifiers=pins.log_verifiers,
        can_bind_vm=kind != "sockets",
        supported_ports=PORTS_OF_KIND[kind] | frozenset(config.ports),
        seals=frozenset(config.network.seals),
        witness_keys=witnesses,
        witnesses_required=required,
        crl_number=lambda: identity.credentials.crl_number,
        clock=lambda: int(time.time()),
    )


def _require_short(state_dir: Path, run_dir: Path | None) -> None:
    """With the longest name that any socket of a session has: post-copy that is recovered needs it, whose guest is lost
    otherwise."""
    longest = len(str(session_folder(run_dir or state_dir / "run", "0" * 32) / RECOVERY_SOCKET))
    if longest > MAX_UNIX_PATH:
        key = f"hypervisor.socket_dir: {run_dir}" if run_dir else f"relay.state_dir: {state_dir}"
        raise ConfigurationError(f"{key} is {longest - MAX_UNIX_PATH} characters too long for unix sockets in it")


def pin_files(config: RelayConfig) -> tuple[list[Path], list[Path]]:
    """Of permit keys, and of log keys."""
    return [Path(name) for name in config.gateway.permit_keys], [Path(name) for name in config.gateway.log_keys]


def qemu_uid_of(name: str) -> int:
    """-1 where QEMU runs as the relay does. `ConfigurationError` for a user that this host lacks."""
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigurationError(f"hypervisor.qemu_user: no user {name} here; see `user` in qemu.conf") from None
    return -1 if uid == os.geteuid() else uid


def now() -> datetime:
    return datetime.now(UTC)

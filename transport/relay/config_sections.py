"""The sections of a relay's configuration file but its limits and named ports: what each key is, and its bounds."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from policy.permit import Seal
from transport.libvirt_rpc.domain_xml import DomainRules

HOST_NAME: Final = "a host's name in the inventory: 1 to 63 of a-z, 0-9 and -, with no - at either end"
DEVICE_NAME: Final = "the name of an interface: at most 15 letters, digits, dots, - and _"
AddressText = Annotated[str, Meta(min_length=3, max_length=261)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class RelaySection(_Section, frozen=True):
    """`listen`: "host:port" (IPv6 in brackets). `state_dir`: spool, permit store and session sockets; mode 0700."""

    listen: AddressText
    state_dir: str


class IdentitySection(_Section, frozen=True):
    """PEM files of this host's certificate chain and key, of the CAs that it trusts and of their CRLs.

    `crls`: files, or a folder of them. `from_gateway`: this relay renews its certificate at the gateway and keeps the
    folder `crls` by it; else others do, and changed files are noticed. `peers`: SPIFFE ids of the only hosts that this
    one speaks with; empty: every host that certificate and permit allow.
    """

    certificate: str
    private_key: str
    trust_bundle: str
    crls: Annotated[list[str], Meta(min_length=1)]
    from_gateway: bool = False
    peers: Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(max_length=4096)] = []


class GatewaySection(_Section, frozen=True):
    """`permit_keys` and `log_keys` are files; what they hold is pinned: no other permit is believed.

    `witnesses_required`: a permit's proof must carry cosignatures of so many of the witnesses in `witness_keys` (files
    of C2SP verifier keys, one on each line), so that a gateway alone cannot show this host a log of its own. `others`:
    URLs of the site's further gateways, whose keys are pinned beside the first one's.
    """

    url: str
    trust_bundle: str
    permit_keys: Annotated[list[str], Meta(min_length=1)]
    log_keys: Annotated[list[str], Meta(min_length=1)]
    witness_keys: list[str] = []
    witnesses_required: Annotated[int, Meta(ge=0, le=16)] = 0
    others: Annotated[list[str], Meta(max_length=3)] = []


class SiteSection(_Section, frozen=True):
    """Another site with which VMs are exchanged, in both directions. All of it is that site's and holds for it alone.

    `bundle`: its roots, a SPIFFE bundle or a PEM file. `crls`: files, or a folder of them, which this relay keeps by
    its gateway where `identity.from_gateway` is true. `permit_keys`, `log_keys`: files, pinned as those of [gateway].
    """

    trust_domain: Annotated[str, Meta(min_length=1, max_length=255)]
    bundle: str
    crls: Annotated[list[str], Meta(min_length=1)]
    permit_keys: Annotated[list[str], Meta(min_length=1)]
    log_keys: Annotated[list[str], Meta(min_length=1)]


class HypervisorSection(_Section, frozen=True):
    """`{uuid}` in a path stands for the permit's VM and is the only thing that varies in it.

    kind "qmp": the relay drives QEMU by its QMP socket. kind "sockets": it only carries; on the destination it
    dials `memory_socket`, and receipts say `vm_binding: none`. `peer_uids`: who may connect to a session's socket.
    kind "libvirt": guests are the local libvirtd's; its clients move them through the front (docs/libvirt.md).
    `socket_dir`: where QEMU, as `qemu_user`, finds each session's sockets. `domain_paths`, `emulators`,
    `networks` and what follows them: what an arriving domain's XML may name on this host (docs/libvirt.md).
    """

    kind: Literal["qmp", "sockets", "libvirt"] = "qmp"
    qmp_socket: str = ""
    memory_socket: str = ""
    peer_uids: tuple[Annotated[int, Meta(ge=0)], ...] = (0,)
    libvirt_socket: str = "/run/libvirt/libvirt-sock"
    socket_dir: str = "/run/sealane/sessions"
    qemu_user: str = "libvirt-qemu"
    domain_paths: tuple[str, ...] = (
        "/var/lib/libvirt/images/",
        "/var/lib/libvirt/qemu/channel/",
        "/var/lib/libvirt/qemu/nvram/",
        "/run/libvirt/qemu/channel/",
        "/dev/pts/",
        "/usr/share/",
    )
    emulators: tuple[str, ...] = ("/usr/bin/qemu-system-x86_64", "/usr/bin/kvm", "/usr/libexec/qemu-kvm")
    networks: tuple[str, ...] = ("default",)
    allow_network_disks: bool = False
    allow_qemu_namespace: bool = False

    @property
    def domain_rules(self) -> DomainRules:
        return DomainRules(
            paths=self.domain_paths,
            emulators=self.emulators,
            networks=self.networks,
            allow_network_disks=self.allow_network_disks,
            allow_qemu_namespace=self.allow_qemu_namespace,
        )


class FrontDestination(_Section, frozen=True):
    """One host that clients of libvirt here may move VMs to, written by hand. `host`: its name in the inventory.

    `loopback`: an address of this host for clients that know `qemu+tcp://` only; another for each destination.
    """

    host: Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z", description=HOST_NAME)]
    loopback: str = ""


class FrontSection(_Section, frozen=True):
    """Where clients of libvirt find the destinations: `folder`/HOST/libvirt.sock, and port 16509 of the loopbacks.

    They are all other hosts of the address book, unless `from_address_book` is false, each with an address of
    `loopback_network` (none where that is ""); what `destinations` says of a host comes before that.
    `peer_uids`: as whom they may come. `session_socket`: where `sealane session start` hands a person's token in;
    `token_file`: an orchestrator's token, read again for each migration that no person has announced.
    """

    folder: str = "/run/sealane/front"
    from_address_book: bool = True
    loopback_network: str = "127.77.0.0/16"
    destinations: Annotated[list[FrontDestination], Meta(max_length=1024)] = []
    max_destinations: Annotated[int, Meta(ge=1, le=10_000)] = 1024
    peer_uids: tuple[Annotated[int, Meta(ge=0)], ...] = (0,)
    loopback_port: Annotated[int, Meta(ge=1, le=65535)] = 16509
    session_socket: str = "/run/sealane/session.sock"
    token_file: str = ""


class NetworkSection(_Section, frozen=True):
    """How this relay's own connections to other relays leave the host: source address for each family, device, DSCP.

    What is not given, the address book's entry of this host says, else the kernel chooses. `seals`: how lanes may be
    sealed here, by frames of our own or by TLS; a permit that wants another is refused.
    """

    bind_ipv4: str = ""
    bind_ipv6: str = ""
    bind_device: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,15}$", description=DEVICE_NAME)] = ""
    dscp: Annotated[int, Meta(ge=0, le=63)] | None = None
    seals: Annotated[tuple[Seal, ...], Meta(min_length=1, max_length=2)] = ("sealane",)


class PlacementSection(_Section, frozen=True):
    """What the relay tells the gateway of the guests of its host, and how often it looks.

    `libvirt_uri` makes it ask libvirt too, read-only, such as "qemu:///system"; `watch_qmp` is about the monitors of
    [hypervisor] qmp_socket. A guest that runs is asked again after `recheck_seconds`; one on its way, each time.
    """

    watch_qmp: bool = True
    libvirt_uri: Annotated[str, Meta(max_length=1024)] = ""
    virsh: Annotated[str, Meta(min_length=1, max_length=1024)] = "virsh"
    scan_seconds: Annotated[float, Meta(ge=0.05, le=300)] = 5.0
    recheck_seconds: Annotated[float, Meta(ge=0.05, le=300)] = 30.0
    report_seconds: Annotated[float, Meta(ge=0.05, le=300)] = 15.0


class MetricsSection(_Section, frozen=True):
    """`listen`: a loopback address such as "127.0.0.1:9464", where an agent on this host scrapes /metrics; "": none."""

    listen: str = ""

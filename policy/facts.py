"""What the gateway knows when it decides: people, VMs, hosts, and the question that is asked of the policy.

Facts come from identity providers, the inventory and the relays, never from what the requester says of themself.
Each value checks itself: a fact that exists is canonical, plain text and unambiguous. Errors: FactRefused.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final

from policy.errors import FactRefused

OPEN_PORT: Final = "OpenPort"  # the action by which a port of another program is opened
VM_ACTIONS: Final = ("MigrateVm", "Evacuate", "BreakGlass", "OpenLibvirt", OPEN_PORT)
GATEWAY_ACTIONS: Final = (
    "CheckDecision", "ReadAudit", "ExportAudit", "ReadInventory", "ReadOwnMigrations", "CancelMigration",
    "PublishPolicy", "EnrolHost", "RevokeHost", "RollKey", "ReadSiem", "ManageSiem", "PruneLog",
)  # fmt: skip
BREAK_GLASS_ACTIONS: Final = ("EndBreakGlass", "ReadBreakGlass")  # about the gateway, as those above
APPROVAL: Final = "ApproveBreakGlass"  # about a VM, but moves nothing
ACTIONS: Final = (*VM_ACTIONS, *GATEWAY_ACTIONS, *BREAK_GLASS_ACTIONS, APPROVAL)
ACTIONS_ON_VMS: Final = (*VM_ACTIONS, APPROVAL)
# All that a sealed person may do, whatever the policies permit: they are there for an emergency and nothing else.
SEALED_ACTIONS: Final = frozenset(
    {"BreakGlass", APPROVAL, *BREAK_GLASS_ACTIONS, "ReadOwnMigrations", "CancelMigration"}
)

NOT_AUTHENTICATED: Final = "nobody"  # Person.authenticated_by of a request that names nobody
CLIENT_CERTIFICATE: Final = "client-certificate"  # Person.authenticated_by of a program that is known by its own
FROM_SITE: Final = "site"  # Person.authenticated_by of somebody for whom another site's gateway vouches
SEALED: Final = "sealed"  # Person.authenticated_by of somebody of the sealed file, for when the directory is down
MAX_TEXT: Final = 1024
MAX_GROUPS: Final = 2000

SPIFFE_ID: Final = re.compile(
    r"spiffe://(?P<domain>[a-z0-9.-]{1,253})/host/(?P<name>[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)"
)
UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SID: Final = re.compile(r"S-1-[0-9]{1,15}(-[0-9]{1,10}){1,15}")
# Plain ASCII, because a zone with a Cyrillic o in "production" would slip past a `forbid` for production.
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}")
_DEVICE: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,15}")  # IFNAMSIZ less the NUL
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*")
# Characters that turn the reading direction: a name could show as another one in the console and the log.
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def moves_guest(action: object) -> bool:
    """Whether what a record or request names moves a VM. A named port carries another program's stream, whose VM cannot
    be checked, and stays where it is."""
    return action != OPEN_PORT


def check_text(what: str, text: str) -> None:
    """Printable, encodable and short; raises FactRefused."""
    if not text or len(text) > MAX_TEXT:
        raise FactRefused(what, f"must have 1 to {MAX_TEXT} characters")
    if text.isascii() and text.isprintable():
        return
    if any(c in _BIDI or unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in text):
        raise FactRefused(what, "holds a control, surrogate or text-direction character")


def check_label(what: str, text: str) -> None:
    """A word that policies compare: plain ASCII, at most 63 characters; raises FactRefused."""
    if _LABEL.fullmatch(text) is None:
        raise FactRefused(what, "must be 1 to 63 ASCII letters, digits and . _ : / - and begin with a letter or digit")


def group_id(issuer: str, name: str) -> str:
    """The id of a group that an issuer vouches for. Bound to the issuer, so that none can claim another's, or a SID."""
    if "#" in issuer or not issuer:
        raise FactRefused("issuer", "must not be empty or hold '#'")
    check_text("group name", name)
    return f"{issuer}#{name}"


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """What Active Directory told of a person for one decision, for its record; policies see only the groups.

    `problem`: why the person's groups are unknown to the policy, None if they are known. `groups`: the SIDs as they
    were read, also those of an account that is disabled; `groups_age_ms` how old they were.
    """

    problem: str | None
    controller: str | None = None
    account: str | None = None
    account_sid: str | None = None
    account_guid: str | None = None
    groups: tuple[str, ...] | None = None
    groups_age_ms: int | None = None
    read_at: str | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks. `id` is `<issuer>#<subject>`, unique over all issuers; `name` is for people to read, never to compare.

    `groups`: SIDs (`S-1-5-…`) or `<issuer>#<name>`, nested ones included; None means unknown, which denies.
    `authenticated_by`: how, for example "local", "oidc"; `NOT_AUTHENTICATED` when the request names nobody.
    `shown_groups`: those of them that policies name, where there are too many for a record to write out; else None.
    `actor`: id of the program that acts for the person (RFC 8693), `prior_actors` of those before it, which policies do
    not see. `account`: what the token's account claim says, for issuers whose groups are Active Directory's;
    `directory`: what that told. `is_program`: it is its own client's token, not a person's. `told_until`: where a token
    told who they are, its `exp` in unix seconds; it is of that token and no part of who they are.
    """

    id: str
    issuer: str
    name: str
    groups: frozenset[str] | None
    authenticated_by: str
    account: str | None = None
    directory: DirectoryFacts | None = None
    shown_groups: frozenset[str] | None = None
    actor: str | None = None
    prior_actors: tuple[str, ...] = ()
    is_program: bool = False
    told_until: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_text("person's issuer", self.issuer)
        check_text("person's id", self.id)
        check_text("person's name", self.name)
        check_label("authenticated_by", self.authenticated_by)
        for actor in (self.actor, *self.prior_actors):
            if actor is not None:
                check_text("actor's id", actor)
        if self.authenticated_by == CLIENT_CERTIFICATE:
            # The SPIFFE id itself, which no token's subject can be: those have a '#'.
            if "#" in self.id or not self.id.startswith(self.issuer + "/") or SPIFFE_ID.fullmatch(self.id):
                raise FactRefused("service's id", "must be '<trust domain>/<path>', and not that of a host")
        elif "#" in self.issuer or not self.id.startswith(self.issuer + "#") or self.id == self.issuer + "#":
            raise FactRefused("person's id", "must be '<issuer>#<subject>', with no '#' in the issuer")
        if len(self.groups or ()) > MAX_GROUPS:
            raise FactRefused("person's groups", f"are more than {MAX_GROUPS}")
        for group in self.groups or ():
            check_text("group id", group)
            if SID.fullmatch(group) is None and group.find("#") < 1:
                raise FactRefused("group id", "must be a SID or '<issuer>#<name>'")


def nobody(asked_by: str) -> Person:
    """The principal of a request that a host (its SPIFFE id) makes without naming a person."""
    return Person(f"{asked_by}#{NOT_AUTHENTICATED}", asked_by, NOT_AUTHENTICATED, frozenset(), NOT_AUTHENTICATED)


NEVER_CONFIRMED: Final = 2**40  # seconds: older than any limit that a policy could set


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which source told a fact, and how long ago it last confirmed it, at the moment when the fact was looked up.

    The default is what nobody has confirmed: a fact whose age was forgotten on the way must not pass for a fresh one.
    """

    source: str = "unknown"
    age_seconds: int = NEVER_CONFIRMED

    def __post_init__(self) -> None:
        check_label("source of a fact", self.source)
        if not 0 <= self.age_seconds <= NEVER_CONFIRMED:
            raise FactRefused("age of a fact", "must not be negative")


@dataclass(frozen=True, slots=True)
class VmProvenance:
    """Of the facts of a VM that policies decide on; each may be from another source."""

    zone: Provenance = Provenance()
    classification: Provenance = Provenance()
    tags: Provenance = Provenance()
    devices: Provenance = Provenance()


@dataclass(frozen=True, slots=True)
class VmFacts:
    """One VM. `uuid` is canonical (lower case); `host` is the name of the host where the inventory places it.

    `devices`: what may tie it to its host, by kind, as its host's relay reports it; None: no fresh report says.
    """

    uuid: str
    name: str
    zone: str
    classification: str
    tags: frozenset[str] = frozenset()
    host: str | None = None
    provenance: VmProvenance = field(default=VmProvenance(), compare=False)
    devices: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if UUID.fullmatch(self.uuid) is None:
            raise FactRefused("VM uuid", "must be a lower-case UUID with hyphens")
        check_text("VM name", self.name)
        if UUID.fullmatch(self.name.lower()):
            # Looked up by name or UUID: a VM named like another one's UUID would be moved in its place.
            raise FactRefused("VM name", "must not look like a UUID")
        check_label("VM zone", self.zone)
        check_label("VM classification", self.classification)
        for tag in self.tags:
            check_label("VM tag", tag)
        for device in self.devices or ():
            check_text("VM device", device)


@dataclass(frozen=True, slots=True)
class MigrationAddress:
    """Where a host's relay is reached, and how its own streams leave it: `device` is its network interface, `dscp` the
    mark (RFC 2474, 0 to 63) of its packets; None leaves both to the kernel."""

    address: str
    device: str | None = None
    dscp: int | None = None

    def __post_init__(self) -> None:
        split_address(self.address)
        if self.device is not None and _DEVICE.fullmatch(self.device) is None:
            raise FactRefused("host device", "must be the name of a network interface, 1 to 15 characters")
        if self.dscp is not None and not 0 <= self.dscp <= 63:
            raise FactRefused("host dscp", "must be 0 to 63")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One hypervisor host. `address` is where its relay listens: `IPv4:port` or `[IPv6]:port`.

    `migration`: all its relay's addresses, best first; empty means `address` alone. `libvirt_name`: what libvirt and
    those who call it call the host (`virsh hostname`), where that is not `name`.
    """

    spiffe_id: str
    name: str
    site: str
    zone: str
    jurisdiction: str
    address: str
    libvirt_name: str | None = None
    migration: tuple[MigrationAddress, ...] = ()
    provenance: Provenance = field(default=Provenance(), compare=False)

    def __post_init__(self) -> None:
        match = SPIFFE_ID.fullmatch(self.spiffe_id)
        if match is None or len(self.spiffe_id) > 255:
            raise FactRefused("host spiffe_id", "must be spiffe://<trust domain>/host/<name>, in lower case")
        if match["name"] != self.name:
            raise FactRefused("host name", "must be the last part of its spiffe_id, so that it has one name only")
        check_label("host site", self.site)
        check_label("host zone", self.zone)
        check_label("host jurisdiction", self.jurisdiction)
        split_address(self.address)
        if self.libvirt_name is not None and _HOST_NAME.fullmatch(self.libvirt_name) is None:
            raise FactRefused("host libvirt_name", "must be a host name: letters, digits, hyphens and dots")

    @property
    def addresses(self) -> tuple[MigrationAddress, ...]:
        """Where its relay is reached, best first."""
        return self.migration or (MigrationAddress(self.address),)


@lru_cache(maxsize=10_000)  # the same few addresses are checked in each decision, and parsing them is slow
def split_address(address: str) -> tuple[str, int]:
    """`10.0.0.1:7443` or `[fd00::1]:7443`, as (IP address, port). Names are refused: a fact must not change by DNS."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise FactRefused("host address", "must be IPv4:port or [IPv6]:port") from None
    # Only ASCII digits: int() also takes Arabic ones, "+7" and "7_4".
    if (ip.version == 6) != bracketed or not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", port):
        raise FactRefused("host address", "must be IPv4:port or [IPv6]:port")
    if int(port) > 65535 or "%" in host:
        raise FactRefused("host address", "must have a port up to 65535 and no interface name")
    return str(ip), int(port)


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """The gateway itself: the resource of every action that is not about one VM."""

    name: str = "gateway"

    def __post_init__(self) -> None:
        check_text("gateway name", self.name)


@dataclass(frozen=True, slots=True)
class Protection:
    """How the stream will be sealed, in the protocol's own names, and whether the relays can check the VM's UUID."""

    tls_version: str = "TLSv1.3"
    key_exchange: str = "X25519MLKEM768"
    lane_cipher: str = "AES-256-GCM"
    vm_binding: bool = True

    def __post_init__(self) -> None:
        for what in ("tls_version", "key_exchange", "lane_cipher"):
            check_label(what, getattr(self, what))


@dataclass(frozen=True, slots=True)
class Context:
    """The circumstances. `time` is the gateway's clock, with time zone; a reason is given or not: its text is no fact.

    `protection` and `ports` belong to the VM actions; `own_migration` to CancelMigration: did the requester start it?
    `own_request` to EndBreakGlass: is it the requester's own? `placement`: who says where the VM is (a "report" of a
    relay, a "receipt", a source of the inventory), and how long ago. `post_copy`: whether the guest may come to run at
    the destination before its memory is there, which a broken host would cost it.
    """

    time: datetime
    reason_given: bool = False
    protection: Protection = Protection()
    ports: frozenset[str] = frozenset({"memory"})
    own_migration: bool = False
    own_request: bool = False
    placement: Provenance = Provenance()
    post_copy: bool = False

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise FactRefused("context time", "must have a time zone")
        for port in self.ports:
            check_label("port", port)


@dataclass(frozen=True, slots=True)
class Question:
    """May this person do this? A VM or host that is None is one that the inventory does not know: the answer is no.

    `requester`: whose break-glass request is to be approved; of ApproveBreakGlass only.
    """

    action: str
    person: Person
    vm: VmFacts | None
    source: HostFacts | None
    destination: HostFacts | None
    context: Context
    gateway: GatewayFacts = GatewayFacts()
    requester: Person | None = None

    def __post_init__(self) -> None:
        check_text("action", self.action)

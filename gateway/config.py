"""The gateway's configuration: one TOML file, decoded once into a frozen tree.

Unknown keys and bad values are refused at start, naming file and key. Paths are relative to the file's directory.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway.elsewhere_settings import PeerTable
from gateway.errors import ConfigRefused
from gateway.issuers import IssuerTable, settings_of
from gateway.patience import REFUSALS_AT_ONCE, REFUSALS_PER_MINUTE
from gateway.services import ServiceTable, people_of
from gateway.siem.tables import SiemTable
from gateway.sites.settings import SiteTable
from gateway.turns import WAIT_SECONDS
from policy.identity.directory_settings import DirectorySettings
from policy.permit import Seal
from policy.settings import SettingRefused, decode_settings
from policy.settings.allowed import shown
from policy.sources.settings import InventorySettings
from transport.hypervisors.moving import AS_CONFIGURED, How

Text = Annotated[str, Meta(min_length=1, max_length=255)]
Seconds = Annotated[int, Meta(ge=1, le=86_400)]
# A log's name, as `audit.checkpoint` takes it: space and + delimit keys and signatures.
Origin = Annotated[
    str, Meta(pattern=r"^[!-*,-~]{1,255}\Z", description="a text of 1 to 255 characters of ASCII, no space and no +")
]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Address(msgspec.Struct, frozen=True):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class GatewayTable(_Table, frozen=True):
    listen: Text
    name: Text
    state_dir: Text


class TlsTable(_Table, frozen=True):
    certificate: Text
    private_key: Text
    client_trust_bundle: Text
    crls: Annotated[tuple[Text, ...], Meta(min_length=1)]


class RetentionTable(_Table, frozen=True):
    """What is pruned from the log's folder: what is older than `months` and is in `archive`.

    `every_hours`: how often a running gateway does it by itself; 0: only when it is asked.
    """

    archive: Text
    months: Annotated[int, Meta(ge=1, le=1_200)] = 12
    every_hours: Annotated[int, Meta(ge=0, le=8_784)] = 0


class LogTable(_Table, frozen=True):
    """`signing_key`, `passphrase_file`: as of [permits]."""

    directory: Text
    signing_key: Text
    origin: Origin
    passphrase_file: Text | None = None
    heartbeat_seconds: Seconds = 300
    ml_dsa_signing_key: Text | None = None  # signs published checkpoints beside the Ed25519 key
    watch_seconds: Annotated[int, Meta(ge=1, le=60)] = 30  # within which each of its files is looked at
    retention: RetentionTable | None = None


class WitnessTable(_Table, frozen=True):
    """A witness by C2SP tlog-witness. `keys`: its verifier keys of types 4 and 6, or files of them."""

    url: Annotated[str, Meta(pattern=r"^https://[^\s]+\Z", max_length=2048, description="https://HOST[:PORT]/…")]
    keys: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=8)]
    trust_bundle: Text | None = None


class WitnessingTable(_Table, frozen=True):
    """`required`: every permit carries the cosignatures of so many witnesses, or is not given out."""

    interval_seconds: Annotated[int, Meta(ge=1, le=3_600)] = 10
    request_seconds: Annotated[int, Meta(ge=1, le=60)] = 5
    max_age_seconds: Annotated[int, Meta(ge=10, le=86_400)] = 300
    required: Annotated[int, Meta(ge=0, le=16)] = 0


class PermitsTable(_Table, frozen=True):
    """What every permit says. `signing_key`: a file, or a TOML file that names a key in a token. `passphrase_file`: if
    the key has one. `seal`: how lanes are sealed; "tls" for sites that may only use a validated module.
    `require_content_digests`: both hosts certify BLAKE3 of what each channel carried.
    """

    signing_key: Text
    passphrase_file: Text | None = None
    lifetime_seconds: Annotated[int, Meta(ge=5, le=3_600)] = 60
    session_seconds: Seconds = 3_600
    recover_seconds: Seconds = 7_200
    max_channels: Annotated[int, Meta(ge=1, le=1_024)] = 64
    bandwidth_bytes_per_second: Annotated[int, Meta(ge=0)] = 0
    downtime_limit_ms: Annotated[int, Meta(ge=1, le=60_000)] = 300
    require_vm_binding: bool = True
    require_content_digests: bool = False
    seal: Seal = "sealane"
    preflight: bool = False  # ask both hosts whether the VM can move before a permit is given


class ObserveTable(_Table, frozen=True):
    """For a rollout: in these zones what policies would deny is let through and recorded, until a given moment."""

    zones: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=63)], ...], Meta(min_length=1, max_length=64)]
    until: Annotated[datetime, Meta(tz=True)]


class PublishingTable(_Table, frozen=True):
    """`signers`: the file of who may sign and approve. `approvals`: by how many others than the author."""

    signers: Text
    approvals: Annotated[int, Meta(ge=1, le=16)] = 1


class PolicyTable(_Table, frozen=True):
    """`bundle`: with `publishing` only what the gateway begins with."""

    bundle: Text
    inventory: Text
    publishing: PublishingTable | None = None
    observe: ObserveTable | None = None


class LocalIssuerTable(_Table, frozen=True):
    issuer: Text
    audience: Text
    signing_key: Text
    token_seconds: Annotated[int, Meta(ge=60, le=86_400)] = 900


class IdentityTable(_Table, frozen=True):
    local_directory: Text | None = None
    local_issuer: LocalIssuerTable | None = None
    issuers: tuple[IssuerTable, ...] = ()
    services: tuple[ServiceTable, ...] = ()
    active_directory: DirectorySettings | None = None


class SealedTable(_Table, frozen=True):
    """People for when the directory is down; `people_sha256` seals their file (`sealane break-glass seal`)."""

    people: Text
    people_sha256: Annotated[
        str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="64 hexadecimal digits, of `sealane break-glass seal`")
    ]
    signing_key: Text
    issuer: Text = "sealane-sealed"
    audience: Text = "sealane-sealed"
    token_seconds: Annotated[int, Meta(ge=60, le=3_600)] = 900


class BreakGlassTable(_Table, frozen=True):
    """Without this table no glass can be broken. `ticket_pattern`: a regular expression for the whole ticket."""

    max_minutes: Annotated[int, Meta(ge=1, le=1_440)] = 60
    answer_minutes: Annotated[int, Meta(ge=1, le=240)] = 30
    max_pending: Annotated[int, Meta(ge=1, le=100)] = 10
    max_pending_per_person: Annotated[int, Meta(ge=1, le=100)] = 3
    ticket_pattern: Text | None = None
    sealed: SealedTable | None = None

    def ticket(self) -> re.Pattern[str] | None:
        """Errors: re.error."""
        return re.compile(self.ticket_pattern) if self.ticket_pattern is not None else None


class EnrolmentTable(_Table, frozen=True):
    """Hosts enrol here. `authority`: the folder of the CA that issues them; its CRL must be among `tls.crls`.

    `gateway_root`: the CA that vouches for this gateway's own certificate, if it is not the root of `authority`.
    """

    authority: Text
    passphrase_file: Text | None = None
    gateway_root: Text | None = None
    token_minutes: Annotated[int, Meta(ge=1, le=10_080)] = 60
    host_hours: Annotated[int, Meta(ge=1, le=24 * 90)] = 24


class EvacuationTable(_Table, frozen=True):
    """Without this table no evacuation is prepared. `destinations`: permits of each VM, at most."""

    max_hours: Annotated[int, Meta(ge=1, le=24)] = 24
    destinations: Annotated[int, Meta(ge=1, le=8)] = 2


class RevocationTable(_Table, frozen=True):
    """How often running migrations are decided anew, and how long one goes on while nobody can tell.

    `token_facts_seconds`: how long after a token's end the groups that only it told are believed.
    """

    interval_seconds: Annotated[int, Meta(ge=1, le=30)] = 15
    unknown_grace_seconds: Annotated[int, Meta(ge=0, le=3_600)] = 300
    token_facts_seconds: Annotated[int, Meta(ge=0, le=86_400)] = 3_600


class LimitsTable(_Table, frozen=True):
    """Bounds of the shells. Each has a default that a site of some hundred hosts can live with.

    `relay_fetch_seconds`: a permit that its source relay has not fetched by then is withdrawn.
    `refusals_per_person`: requests that are denied, fail or only ask, at once; `refusals_per_minute`: more of them.
    `refused_calls_per_host`: records of calls of libvirt that a host's relay refused, at once;
    `refused_calls_per_minute`: more of them. `turn_seconds`: how long a question over many records waits for those
    before it. `long_answer_seconds`: for reading the whole of a long answer.
    """

    connections: Annotated[int, Meta(ge=2, le=10_000)] = 512
    connections_per_address: Annotated[int, Meta(ge=1, le=10_000)] = 64
    handshake_seconds: Seconds = 5
    request_seconds: Seconds = 30
    poll_seconds: Annotated[int, Meta(ge=1, le=300)] = 30
    relay_silence_seconds: Seconds = 45
    relay_fetch_seconds: Annotated[int, Meta(ge=5, le=300)] = 15
    placement_silence_seconds: Annotated[int, Meta(ge=2, le=3_600)] = 60
    refusals_per_person: Annotated[int, Meta(ge=10, le=1_000_000)] = REFUSALS_AT_ONCE
    refusals_per_minute: Annotated[int, Meta(ge=1, le=60_000)] = REFUSALS_PER_MINUTE
    refused_calls_per_host: Annotated[int, Meta(ge=1, le=100_000)] = 100
    refused_calls_per_minute: Annotated[int, Meta(ge=1, le=60_000)] = 6
    turn_seconds: Annotated[int, Meta(ge=1, le=3_600)] = int(WAIT_SECONDS)
    long_answer_seconds: Annotated[int, Meta(ge=1, le=3_600)] = 60
    log_queue: Annotated[int, Meta(ge=1, le=4_096)] = 256
    migrations: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000


class MetricsTable(_Table, frozen=True):
    """`token_file`: what a scraper sends as bearer token, one line, mode 0600."""

    token_file: Text


class GatewayConfig(_Table, frozen=True):
    """The whole file. `directory` is where it lies; `path()` makes a name of the file absolute."""

    gateway: GatewayTable
    tls: TlsTable
    log: LogTable
    permits: PermitsTable
    policy: PolicyTable
    identity: IdentityTable
    moving: How = AS_CONFIGURED  # what a requester's wishes are set over
    inventory: InventorySettings = InventorySettings()
    break_glass: BreakGlassTable | None = None
    enrolment: EnrolmentTable | None = None
    evacuation: EvacuationTable | None = None
    witnesses: Annotated[tuple[WitnessTable, ...], Meta(max_length=16)] = ()
    witnessing: WitnessingTable = WitnessingTable()
    revocation: RevocationTable = RevocationTable()
    limits: LimitsTable = LimitsTable()
    siem: SiemTable = SiemTable()
    metrics: MetricsTable | None = None
    peers: Annotated[tuple[PeerTable, ...], Meta(max_length=3)] = ()  # the other gateways of this very site
    sites: Annotated[tuple[SiteTable, ...], Meta(max_length=64)] = ()
    directory: Path = Path()

    def path(self, name: str) -> Path:
        return self.directory / name

    @property
    def listen(self) -> Address:
        return parse_address(self.gateway.listen)


_ADDRESS: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]+)):([0-9]{1,5})")


def parse_address(text: str) -> Address:
    """`HOST:PORT` or `[IPv6]:PORT`; ValueError otherwise. Port 0 asks the system for a free one."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65_535:
        raise ValueError(f"{shown(text)} is not HOST:PORT, with a port from 0 to 65535")
    return Address(match[1] or match[2], int(match[3]))


def load(path: Path) -> GatewayConfig:
    """Read and check the file. Errors: ConfigRefused, naming file and key."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigRefused(
            path, "", "no such file; docs/install.md shows one, `sealane gateway practice` makes one"
        ) from None
    except OSError as error:
        raise ConfigRefused(path, "", f"cannot be read: {error.strerror}") from error
    return parse(text, path)


def parse(text: bytes, path: Path) -> GatewayConfig:
    """Decode `text` as the content of `path`. Errors: ConfigRefused."""
    try:
        config = decode_settings(text, GatewayConfig)
    except SettingRefused as error:
        raise ConfigRefused(path, error.key, error.problem) from None
    _check(config, path)
    return msgspec.structs.replace(config, directory=path.parent)


def _check(config: GatewayConfig, path: Path) -> None:
    """What types cannot say."""
    try:
        parse_address(config.gateway.listen)
    except ValueError as error:
        raise ConfigRefused(path, "gateway.listen", str(error)) from error
    _check_identity(config, path)
    try:
        config.inventory.check()
    except ValueError as error:
        raise ConfigRefused(path, "inventory.sources", str(error)) from error
    _check_siem(config, path)
    if config.witnessing.required > len(config.witnesses):
        raise ConfigRefused(path, "witnessing.required", "is more than there are [[witnesses]]")
    if config.permits.recover_seconds < config.permits.session_seconds:
        raise ConfigRefused(path, "permits.recover_seconds", "is shorter than `session_seconds`")
    for what, names in (("name", [s.name for s in config.sites]), ("domain", [s.trust_domain for s in config.sites])):
        if len(set(names)) != len(names):
            raise ConfigRefused(path, "sites", f"two sites have the same {what}")
    if config.limits.relay_silence_seconds <= config.limits.poll_seconds:
        raise ConfigRefused(path, "limits.relay_silence_seconds", "must be longer than `poll_seconds`")


def _check_identity(config: GatewayConfig, path: Path) -> None:
    identity = config.identity
    if (identity.local_directory is None) != (identity.local_issuer is None):
        raise ConfigRefused(path, "identity", "`local_directory` and `local_issuer` need each other")
    if identity.local_issuer is None and not identity.issuers:
        raise ConfigRefused(path, "identity", "nobody could sign in: no local directory and no issuer")
    if identity.active_directory is not None:
        try:
            identity.active_directory.checked_controllers()
        except ValueError as error:
            raise ConfigRefused(path, "identity.active_directory", str(error)) from error
    elif any(issuer.groups == "active-directory" for issuer in identity.issuers):
        raise ConfigRefused(path, "identity.active_directory", "is missing, but an issuer takes its groups from there")
    names = [issuer.issuer for issuer in identity.issuers]
    names += [identity.local_issuer.issuer] if identity.local_issuer else []
    names += _check_break_glass(config, path)
    if len(set(names)) != len(names):
        raise ConfigRefused(path, "identity.issuers", "two issuers have the same name")
    try:
        people_of(identity.services)
    except ValueError as error:
        raise ConfigRefused(path, "identity.services", str(error)) from error
    if any(name.startswith("spiffe:") for name in names):
        raise ConfigRefused(path, "identity.issuers", "no issuer of tokens may be called like a trust domain (spiffe:)")
    for issuer in identity.issuers:
        try:
            settings_of(issuer)
        except ValueError as error:
            raise ConfigRefused(path, "identity.issuers", f"{issuer.issuer}: {error}") from error


def _check_break_glass(config: GatewayConfig, path: Path) -> list[str]:
    """Returns the names of its issuers. Errors: ConfigRefused."""
    table = config.break_glass
    if table is None:
        return []
    try:
        table.ticket()
    except re.error as error:
        raise ConfigRefused(path, "break_glass.ticket_pattern", f"is no regular expression: {error}") from error
    return [table.sealed.issuer] if table.sealed is not None else []


def _check_siem(config: GatewayConfig, path: Path) -> None:
    try:
        config.siem.check()
    except ValueError as error:
        raise ConfigRefused(path, "siem.sinks", str(error)) from error

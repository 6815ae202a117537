"""A whole site in a folder, ready to run: what `sealane demo` and the tests start from.

    D/gateway.toml  inventory.toml  people.toml (0600)  bundle/  token.key  log/  state/
    D/certs/…                                   as `sealane certs init` lays it down, with a certificate for each host
    D/relay-<host>.toml  relay-<host>/          configuration and state folder of each host's relay
    D/passwords/<user>                          the made-up passwords, one 0600 file each

Paths inside the files are relative to the folder, so it may be moved. It is a start for a real site, too: then
replace the inventory and the bundle by your own, and the local people by an issuer.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

import policy
from certs import layout
from certs.files import write_atomically, write_private_key
from policy.identity.local import ScryptCost, hash_password, person_table

EXAMPLE_BUNDLE: Final = Path(policy.__file__).parent / "examples" / "bank"
LOCAL_ISSUER: Final = "sealane-local"  # the example bundle names groups of this issuer
AUDIENCE: Final = "sealane"
_TRUST: Final = 'client_trust_bundle = "certs/ca.pem"\ncrls = ["certs/crl.pem"]'
_TRUST_OF_ISSUING: Final = (
    'client_trust_bundle = "issuing/bundle.pem"\ncrls = ["issuing/crl.pem", "issuing/root-crl.pem"]'
)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One host. `hypervisor`: the lines of its relay's [hypervisor] table; paths are relative to the site's folder."""

    name: str
    relay_listen: str
    zone: str = "test"
    site: str = "fra"
    jurisdiction: str = "DE"
    hypervisor: str = 'kind = "qmp"\nqmp_socket = "vms/{uuid}/qmp.sock"'


@dataclass(frozen=True, slots=True)
class VmPlan:
    name: str
    uuid: str
    host: str
    zone: str = "test"
    classification: str = "internal"
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PersonPlan:
    username: str
    name: str
    groups: tuple[str, ...]


PEOPLE: Final = (
    PersonPlan("alice", "Alice Operator", ("operators",)),
    PersonPlan("bob", "Bob Guest", ("guests",)),
    PersonPlan("carol", "Carol Auditor", ("auditors",)),
)


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything of a site is. `passwords` by user name."""

    directory: Path
    trust_domain: str
    log_origin: str
    passwords: dict[str, str] = field(repr=False)

    @property
    def gateway_config(self) -> Path:
        return self.directory / "gateway.toml"

    @property
    def certs(self) -> Path:
        return self.directory / "certs"

    @property
    def ca(self) -> Path:
        return self.certs / "ca.pem"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def vkey(self) -> str:
        return (self.certs / "gateway" / "log.vkey").read_text("ascii").strip()

    @property
    def inventory(self) -> Path:
        return self.directory / "inventory.toml"

    @property
    def people(self) -> Path:
        return self.directory / "people.toml"

    @property
    def bundle(self) -> Path:
        return self.directory / "bundle"

    def host_folder(self, name: str) -> Path:
        return self.certs / "hosts" / name

    def relay_config(self, name: str) -> Path:
        return self.directory / f"relay-{name}.toml"

    def spiffe_id(self, name: str) -> str:
        return f"spiffe://{self.trust_domain}/host/{name}"


def lay_out_site(  # noqa: PLR0913 - what differs between a demo, a test and a first real site
    directory: Path,
    *,
    hosts: Sequence[HostPlan],
    vms: Sequence[VmPlan],
    people: Sequence[PersonPlan] = PEOPLE,
    gateway_listen: str = "127.0.0.1:0",
    trust_domain: str = "bank.example",
    log_origin: str = "sealane.example/demo",
    now: datetime,
    password_cost: ScryptCost | None = None,
    enrols: bool = False,
) -> Site:
    """Make the folder. Its parent must exist, the folder itself must not (or be empty). Errors: CertificateError.

    `enrols`: hosts may enrol at its gateway, by a CA of their own in D/issuing.

    With port 0 in `gateway_listen` the relays cannot know where the gateway is: `point_relays` tells them later.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    site = Site(directory, trust_domain, log_origin, {each.username: secrets.token_urlsafe(12) for each in people})
    layout.init(site.certs, trust_domain, log_origin, ["localhost"], ["127.0.0.1", "::1"], now)
    for host in hosts:
        layout.issue_host(site.certs, host.name, now)
        (directory / f"relay-{host.name}").mkdir(mode=0o700)
    write_private_key(directory / "token.key", ec.generate_private_key(ec.SECP256R1()))
    shutil.copytree(EXAMPLE_BUNDLE, site.bundle)
    write_inventory(site, hosts, vms)
    _write_people(site, people, password_cost or ScryptCost())
    gateway_toml = _gateway_toml(gateway_listen, log_origin)
    if enrols:
        layout.init_issuing(site.certs, directory / "issuing", now)
        gateway_toml = gateway_toml.replace(_TRUST, _TRUST_OF_ISSUING) + '\n[enrolment]\nauthority = "issuing"\n'
    write_atomically(site.gateway_config, gateway_toml.encode())
    point_relays(site, hosts, gateway_listen)
    return site


def point_relays(site: Site, hosts: Sequence[HostPlan], gateway_listen: str) -> None:
    """Write each relay's configuration, with the gateway at `gateway_listen`."""
    for host in hosts:
        write_atomically(site.relay_config(host.name), _relay_toml(host, gateway_listen).encode())


def write_inventory(site: Site, hosts: Sequence[HostPlan], vms: Sequence[VmPlan]) -> None:
    """Replace the inventory file."""
    tables = [
        f"[[hosts]]\nname = {_text(host.name)}\nspiffe_id = {_text(site.spiffe_id(host.name))}\n"
        f"site = {_text(host.site)}\nzone = {_text(host.zone)}\n"
        f"jurisdiction = {_text(host.jurisdiction)}\naddress = {_text(host.relay_listen)}\n"
        for host in hosts
    ]
    tables += [
        f"[[vms]]\nname = {_text(vm.name)}\nuuid = {_text(vm.uuid)}\nzone = {_text(vm.zone)}\n"
        f"classification = {_text(vm.classification)}\ntags = {json.dumps(list(vm.tags))}\nhost = {_text(vm.host)}\n"
        for vm in vms
    ]
    write_atomically(site.inventory, "\n".join(tables).encode())


def _write_people(site: Site, people: Sequence[PersonPlan], cost: ScryptCost) -> None:
    folder = site.directory / "passwords"
    folder.mkdir(mode=0o700)
    tables = []
    for person in people:
        password = site.passwords[person.username]
        write_atomically(folder / person.username, f"{password}\n".encode(), mode=0o600)
        tables.append(person_table(person.username, person.name, person.groups, hash_password(password, cost=cost)))
    write_atomically(site.people, "\n".join(tables).encode(), mode=0o600)


def _gateway_toml(listen: str, log_origin: str) -> str:
    return f"""\
[gateway]
listen = {_text(listen)}
name = "gateway"
state_dir = "state"

[tls]
certificate = "certs/gateway/tls.pem"
private_key = "certs/gateway/tls.key"
{_TRUST}

[log]
directory = "log"
signing_key = "certs/gateway/log.key"
origin = {_text(log_origin)}

[permits]
signing_key = "certs/gateway/permit.key"
lifetime_seconds = 60
session_seconds = 3600

[policy]
bundle = "bundle"
inventory = "inventory.toml"

[identity]
local_directory = "people.toml"

[identity.local_issuer]
issuer = {_text(LOCAL_ISSUER)}
audience = {_text(AUDIENCE)}
signing_key = "token.key"
token_seconds = 900
"""


def _relay_toml(host: HostPlan, gateway_listen: str) -> str:
    credentials = f"certs/hosts/{host.name}"
    return f"""\
[relay]
listen = {_text(host.relay_listen)}
state_dir = {_text(f"relay-{host.name}")}

[identity]
certificate = {_text(f"{credentials}/host.pem")}
private_key = {_text(f"{credentials}/host.key")}
trust_bundle = "certs/ca.pem"
crls = ["certs/crl.pem"]

[gateway]
url = {_text(f"https://{gateway_listen}")}
trust_bundle = "certs/ca.pem"
permit_keys = ["certs/gateway/permit.pub"]
log_keys = ["certs/gateway/log.vkey"]

[hypervisor]
{host.hypervisor}
"""


def _text(text: str) -> str:
    """A TOML basic string; for printable text the same as one of JSON."""
    return json.dumps(text, ensure_ascii=False)

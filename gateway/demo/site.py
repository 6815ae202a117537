"""The demo's site, by the same starter as a first real one: two hosts, a VM in production, and two people."""

import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.starter import HostPlan, PersonPlan, Site, VmPlan, lay_out_site

SOURCE, DESTINATION = "host-a", "host-b"
# By the example bundle, operators move VMs of the test zone, and production operators move those of production.
OPERATOR = PersonPlan("alice", "Alice Production", ("production-operators",))
STRANGER = PersonPlan("mallory", "Mallory Laboratory", ("operators",))
_HYPERVISOR = """\
kind = "qmp"
qmp_socket = "{host}/{{uuid}}/qmp.sock"

[limits]
migration_deadline_seconds = 120"""


@dataclass(frozen=True, slots=True)
class DemoSite:
    """A site and where its gateway will listen."""

    site: Site
    gateway_listen: str
    vm_uuid: str

    @property
    def folder(self) -> Path:
        """All that the demo writes."""
        return self.site.directory

    @property
    def log_key(self) -> Path:
        """The one thing that the auditor has from elsewhere."""
        return self.site.certs / "gateway" / "log.vkey"

    def machine(self, host: str) -> Path:
        """The folder of the VM's QEMU on a host, where that host's relay looks for its monitor."""
        return self.folder / host / self.vm_uuid

    def password(self, person: PersonPlan) -> Path:
        """The file with a password that was made up for this run."""
        return self.folder / "passwords" / person.username


def lay_out(folder: Path, vm: str, uuid: str) -> DemoSite:
    """Write the whole site into `folder`; nothing runs yet. Errors: CertificateError, OSError."""
    # Gateway and relays name each other in files, so ports are chosen beforehand; each has a loopback address of its
    # own, as hosts have.
    gateway, at_source, at_destination = (_free_address(host) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"))
    hosts = [
        HostPlan(name, listen, zone="production", hypervisor=_HYPERVISOR.format(host=name))
        for name, listen in ((SOURCE, at_source), (DESTINATION, at_destination))
    ]
    site = lay_out_site(
        folder,
        hosts=hosts,
        vms=[VmPlan(vm, uuid, SOURCE, zone="production", classification="restricted")],
        people=(OPERATOR, STRANGER),
        gateway_listen=gateway,
        now=datetime.now(UTC),
    )
    return DemoSite(site, gateway, uuid)


def _free_address(host: str) -> str:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"

"""A real Active Directory on loopback: Samba, provisioned once a session, copied and started for each that needs one.

LDAPS has a fixed port, so controllers differ by their address in 127/8. Passwords are set over LDAPS, like the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import ldap3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from policy.identity.directory_settings import Credentials, DirectorySettings
from policy.identity.directory_socket import ServerTls

REALM: Final = "corp.example.test"
BASE: Final = "DC=corp,DC=example,DC=test"
USERS: Final = f"CN=Users,{BASE}"
ADMIN_PASSWORD: Final = "Adm1n-Passw0rd"
USER_PASSWORD: Final = "Us3r-Passw0rd"
SERVICE_PASSWORD: Final = "Svc-Passw0rd"
READY_SECONDS: Final = 60.0
LDAPS: Final = 636
_ENVIRONMENT: Final = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"}
Administrator = Any  # an ldap3.Connection, whose types are wrong in places

_SMB_CONF: Final = """\
[global]
    netbios name = DC1
    realm = CORP.EXAMPLE.TEST
    workgroup = CORP
    server role = active directory domain controller
    ldb:nosync = true
    server services = {services}
    ldap server require strong auth = allow_sasl_over_tls
    dcerpc endpoint servers = -all
    interfaces = {address}/8
    bind interfaces only = yes
    private dir = {folder}/private
    binddns dir = {folder}/bind-dns
    state directory = {folder}/state
    cache directory = {folder}/cache
    lock directory = {folder}/lock
    pid directory = {folder}/pid
    ncalrpc dir = {folder}/ncalrpc
    ntp signd socket directory = {folder}/ntp
    winbindd socket directory = {folder}/winbindd
    tls enabled = yes
    tls certfile = {folder}/tls/server.pem
    tls keyfile = {folder}/tls/server.key
    tls cafile = {folder}/tls/ca.pem
"""


class TestAuthority:
    """A CA that signs whatever a test wants."""

    __test__ = False

    def __init__(self, name: str = "test directory CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self._key.public_key(), name, ca=True)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def write_server(self, folder: Path, *names: str, expired: bool = False) -> None:
        """server.pem, server.key and ca.pem for a controller of these DNS names (or IP addresses)."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._sign(names[0], key.public_key(), str(self.certificate.subject.rdns[0].get_attributes_for_oid(
            NameOID.COMMON_NAME)[0].value), names=names, expired=expired)  # fmt: skip
        (folder / "server.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
        key_file = folder / "server.key"
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key_file.chmod(0o600)
        (folder / "ca.pem").write_bytes(self.pem)

    def _sign(
        self, subject: str, public_key: Any, issuer: str, *, names: Sequence[str] = (), ca: bool = False,
        expired: bool = False,
    ) -> x509.Certificate:  # fmt: skip
        now = datetime.now(UTC) - timedelta(days=10 if expired else 0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
        return builder.sign(self._key, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Controller:
    """One running domain controller."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes]

    def administrator(self) -> Administrator:
        """A connection that may change everything; for `with`, which opens and closes it."""
        tls = ServerTls(self.name, (self.folder / "tls" / "ca.pem").read_text(encoding="ascii"))
        tls.context.sslsocket_class = ssl.SSLSocket  # nobody bounds each of its calls
        server = ldap3.Server(self.address, LDAPS, use_ssl=True, tls=tls, get_info=ldap3.NONE, connect_timeout=5)
        return ldap3.Connection(
            server, f"administrator@{REALM}", ADMIN_PASSWORD, raise_exceptions=True, check_names=False,
            auto_referrals=False, auto_range=False, return_empty_attributes=False, receive_timeout=20,
        )  # fmt: skip

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """It accepts connections (the kernel does) and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Connections are lost, accounts kept."""
        self.stop(orderly=True)
        self.process = _run(self.folder)
        _await_port(self)

    def export_keytab(self, file: Path, principal: str = "svc-sealane") -> None:
        """The keys that the account has now, added to the file."""
        subprocess.run(
            ["samba-tool", "domain", "exportkeytab", str(file), f"--principal={principal}",
             "-s", str(self.folder / "smb.conf")],
            check=True, env=_ENVIRONMENT, capture_output=True, timeout=60,
        )  # fmt: skip
        file.chmod(0o600)

    def stop(self, *, orderly: bool = False) -> None:
        if self.process.poll() is None and orderly:
            self.process.terminate()
        elif self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            # The group: Samba leaves children of its own.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def seeded_domain(factory: pytest.TempPathFactory) -> Path:
    """The folder of a stopped controller with the accounts of `_seed`; made once a session, also under xdist."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "samba-seeded"
    with (root / "samba.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            provision(folder)
            controller = start(folder, root / "samba-seeding", TestAuthority(), f"dc1.{REALM}")
            try:
                with controller.administrator() as administrator:
                    _seed(administrator)
            finally:
                controller.stop(orderly=True)
            shutil.rmtree(folder)
            (root / "samba-seeding").rename(folder)
            (folder / "done").touch()
    return folder


def _seed(administrator: Administrator) -> None:
    """The service account; what both controllers are called in Kerberos; alice.

    She is in `inner`, which is in `outer`, and in two groups that hold each other.
    """
    add_user(administrator, "svc-sealane", SERVICE_PASSWORD, userAccountControl="66048")
    services = [f"ldap/{name}.{REALM}" for name in ("dc1", "dc2")]
    administrator.modify(
        f"CN=DC1,OU=Domain Controllers,{BASE}", {"servicePrincipalName": [(ldap3.MODIFY_ADD, services)]}
    )
    alice = add_user(administrator, "alice")
    inner = add_group(administrator, "inner", [alice])
    add_group(administrator, "outer", [inner])
    ring = add_group(administrator, "ring-1", [alice])
    change(administrator, ring, member=[alice, add_group(administrator, "ring-2", [ring])])


@dataclass
class Domain:
    """Running controllers, and what a gateway's settings say of them."""

    controllers: tuple[Controller, ...]
    authority: TestAuthority

    @property
    def credentials(self) -> Credentials:
        return Credentials(SERVICE_PASSWORD, self.authority.pem.decode())

    def settings(self, *controllers: Controller, **changes: Any) -> DirectorySettings:
        """All controllers, or the named ones; short time-outs."""
        asked = controllers or self.controllers
        values: dict[str, Any] = {
            "controllers": tuple(each.name for each in asked),
            "addresses": {each.name: each.address for each in asked},
            "trust_bundle": "ad-ca.pem",
            "base": BASE,
            "domain": "CORP",
            "bind_user": f"svc-sealane@{REALM}",
            "bind_password_file": "ad-password",
            "connect_seconds": 1,
            "receive_seconds": 1,
            "deadline_seconds": 5,
            **changes,
        }
        return DirectorySettings(**values)


@contextlib.contextmanager
def start_domain(seeded: Path, folder: Path, *, kdc: bool = False) -> Iterator[Domain]:
    authority = TestAuthority()
    with contextlib.ExitStack() as stack:
        controllers = []
        for name in (f"dc1.{REALM}", f"dc2.{REALM}"):
            controller = start(seeded, folder / name.partition(".")[0], authority, name, kdc=kdc)
            stack.callback(controller.stop)
            controllers.append(controller)
        yield Domain(tuple(controllers), authority)


def provision(folder: Path) -> None:
    """A new domain, once: about seven seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [
            "samba-tool", "domain", "provision", f"--targetdir={folder}", "--configfile=/dev/null",
            f"--realm={REALM.upper()}", "--domain=CORP", "--server-role=dc", "--dns-backend=NONE", "--host-name=dc1",
            "--host-ip=127.0.0.1", f"--adminpass={ADMIN_PASSWORD}",
        ],
        check=True, env=_ENVIRONMENT, capture_output=True, timeout=120,
    )  # fmt: skip


def free_address() -> str:
    """An address in 127/8 on which nobody has the port."""
    for attempt in range(200):
        number = (os.getpid() * 7 + attempt * 13 + time.monotonic_ns() // 1000) % 60_000
        address = f"127.77.{number // 250}.{number % 250 + 2}"
        with socket.socket() as probe:
            try:
                probe.bind((address, LDAPS))
            except OSError:
                continue
            return address
    raise RuntimeError("no free loopback address")


def start(
    provisioned: Path, folder: Path, authority: TestAuthority, name: str, *, expired: bool = False, kdc: bool = False
) -> Controller:
    """A controller of its own, from a copy; ready when LDAPS accepts. With `kdc` it gives Kerberos tickets as well."""
    shutil.copytree(
        provisioned,
        folder,
        ignore=shutil.ignore_patterns("cache", "lock", "pid", "ncalrpc", "ntp", "winbindd", "ldapi", "ldap_priv"),
    )
    address = free_address()
    authority.write_server(folder / "tls", name, expired=expired)
    for each in ("cache", "lock", "pid", "ncalrpc", "ntp", "winbindd"):
        (folder / each).mkdir(exist_ok=True)
    text = _SMB_CONF.format(address=address, folder=folder, services="ldap, kdc" if kdc else "ldap")
    (folder / "smb.conf").write_text(text, encoding="ascii")
    controller = Controller(name, address, folder, _run(folder))
    try:
        _await_port(controller)
    except BaseException:
        controller.stop()
        raise
    return controller


def _run(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "samba.log").open("wb") as output:
        return subprocess.Popen(
            ["samba", "-i", "-M", "single", "-s", str(folder / "smb.conf"), "--debug-stdout"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=_ENVIRONMENT,
        )  # fmt: skip


def _await_port(controller: Controller) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((controller.address, LDAPS), 1):
            return
        if controller.process.poll() is not None:
            break
        time.sleep(0.02)  # polls another process, which has no way to tell us
    raise RuntimeError(f"samba did not start: {(controller.folder / 'samba.log').read_text(errors='replace')[-2000:]}")


def write_krb5_conf(file: Path, *kdcs: str, lifetime: str = "10h") -> None:
    """libkrb5's configuration: where it finds the KDCs of the realm."""
    lines = "".join(f"    kdc = {kdc}\n" for kdc in kdcs)
    file.write_text(
        f"[libdefaults]\n  dns_lookup_kdc = false\n  dns_lookup_realm = false\n  kdc_timesync = 0\n"
        f"  ticket_lifetime = {lifetime}\n"
        f"[realms]\n  {REALM.upper()} = {{\n{lines}  }}\n",
        encoding="ascii",
    )


# --- what an administrator does -----------------------------------------------------------------------------------


def add_user(connection: Administrator, name: str, password: str = USER_PASSWORD, **attributes: Any) -> str:
    """An enabled account; returns its DN."""
    dn = f"CN={name},{USERS}"
    connection.add(
        dn,
        "user",
        {
            "sAMAccountName": name,
            "userPrincipalName": f"{name}@{REALM}",
            "unicodePwd": f'"{password}"'.encode("utf-16-le"),
            "userAccountControl": "512",
            **attributes,
        },
    )
    return dn


def add_group(connection: Administrator, name: str, members: Sequence[str] = ()) -> str:
    dn = f"CN={name},{USERS}"
    attributes: dict[str, Any] = {"sAMAccountName": name}
    if members:
        attributes["member"] = list(members)
    connection.add(dn, "group", attributes)
    return dn


def change(connection: Administrator, dn: str, **values: Any) -> None:
    """Replace attributes; an empty list removes one. `_` in a name stands for `-`."""
    changes = {
        name.replace("_", "-"): [(ldap3.MODIFY_REPLACE, value if isinstance(value, list) else [value])]
        for name, value in values.items()
    }
    connection.modify(dn, changes)


def sid_of(connection: Administrator, dn: str) -> str:
    from policy.identity.sids import decode_sid  # noqa: PLC0415

    connection.search(dn, "(objectClass=*)", ldap3.BASE, attributes=["objectSid"])
    return decode_sid(connection.response[0]["raw_attributes"]["objectSid"][0])


def add_contacts(connection: Administrator, names: Sequence[str]) -> None:
    """Cheap objects that a group can have as members."""
    for dn in names:
        connection.add(dn, "contact")

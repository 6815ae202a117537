"""Binds with a keytab to a real Samba Active Directory, which is its own KDC; and a KDC that is down, or hangs."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ldap3
import pytest
from ldap3.core.exceptions import LDAPException

from policy.errors import DirectoryRefused, DirectoryUnavailable
from policy.identity.active_directory import ActiveDirectory
from policy.identity.directory_account import AccountName
from policy.identity.directory_check import check_directory
from policy.identity.directory_session import Session, make_tickets
from policy.identity.directory_settings import Credentials, DirectorySettings, Endpoint, read_credentials
from policy.identity.kerberos import Tickets, authenticate, end_point_binding
from tests.policy.identity import hostile_controller as hostile
from tests.policy.identity.samba_ad import (
    BASE,
    REALM,
    Controller,
    Domain,
    add_user,
    change,
    start_domain,
    write_krb5_conf,
)

with suppress(
    ModuleNotFoundError
):  # `make check` imports this file where nothing has compiled gssapi, and runs none of it
    import gssapi
    from gssapi.raw import ChannelBindings

pytestmark = pytest.mark.real

PRINCIPAL = f"svc-sealane@{REALM.upper()}"
ALICE = AccountName("userPrincipalName", f"alice@{REALM}")
DC_SERVICE = f"ldap/dc1.{REALM}"


@dataclass(frozen=True)
class Realm:
    """A domain that gives tickets, the keys of its service account, and libkrb5's configuration."""

    domain: Domain
    keytab: bytes
    krb5_conf: Path

    @property
    def credentials(self) -> Credentials:
        return Credentials("", self.domain.authority.pem.decode(), self.keytab)

    def settings(self, *controllers: Controller, **changes: Any) -> DirectorySettings:
        named = {"bind": "gssapi", "bind_user": PRINCIPAL, "bind_keytab": "svc.keytab", "bind_password_file": None}
        return self.domain.settings(*controllers, **{**named, **changes})

    def kdcs(self, *where: str, lifetime: str = "10h") -> None:
        write_krb5_conf(self.krb5_conf, *where, lifetime=lifetime)

    @property
    def own_kdcs(self) -> tuple[str, ...]:
        return tuple(each.address for each in self.domain.controllers)

    @property
    def endpoint(self) -> Endpoint:
        return self.settings().checked_controllers()[0]


@pytest.fixture(scope="module")
def running(seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    folder = tmp_path_factory.mktemp("realm")
    with start_domain(seeded, folder, kdc=True) as domain:
        domain.controllers[0].export_keytab(folder / "svc.keytab")
        yield Realm(domain, (folder / "svc.keytab").read_bytes(), folder / "krb5.conf")


@pytest.fixture
def realm(running: Realm, monkeypatch: pytest.MonkeyPatch) -> Realm:
    monkeypatch.setenv("KRB5_CONFIG", str(running.krb5_conf))
    monkeypatch.setenv("KRB5CCNAME", "FILE:/nonexistent/cache")  # that of whoever started us is not touched
    running.kdcs(*running.own_kdcs)
    return running


@contextmanager
def session_of(realm: Realm, tickets: Tickets | None = None, endpoint: Endpoint | None = None) -> Iterator[Session]:
    session = Session(
        endpoint or realm.endpoint, realm.settings(), realm.credentials, 0,
        tickets or make_tickets(realm.settings(), realm.credentials),
    )  # fmt: skip
    try:
        yield session
    finally:
        session.close()


@contextmanager
def silent_kdc() -> Iterator[str]:
    """It takes connections and datagrams, and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(stream.getsockname())
        yield f"127.0.0.1:{stream.getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


async def groups_of_alice(ad: ActiveDirectory) -> int:
    return len((await ad.look_up(ALICE, datetime.now(UTC))).account.groups)


# --- what works ---------------------------------------------------------------------------------------------------


async def test_groups_are_read_with_a_keytab_and_no_password(realm: Realm) -> None:
    by_keytab = ActiveDirectory(realm.settings(), realm.credentials)
    by_password = ActiveDirectory(realm.domain.settings(), realm.domain.credentials)
    try:
        assert await groups_of_alice(by_keytab) == await groups_of_alice(by_password) > 3
    finally:
        by_keytab.close()
        by_password.close()
    assert "\\x05" not in repr(realm.credentials)


def test_the_ticket_is_kept_so_that_a_kdc_that_is_down_is_not_missed(realm: Realm) -> None:
    tickets = make_tickets(realm.settings(), realm.credentials)
    with session_of(realm, tickets) as session:
        session.open()
    realm.kdcs(closed_port())
    with session_of(realm, tickets) as session:
        session.open()
        assert session.find(ALICE).name == ALICE.value


def test_a_ticket_is_renewed_by_itself_during_its_life_and_after_it(realm: Realm, tmp_path: Path) -> None:
    """In a process whose clock is put forward: Samba takes a ticket of less than two minutes for one of kpasswd."""
    realm.kdcs(*realm.own_kdcs, lifetime="140s")
    (tmp_path / "svc.keytab").write_bytes(realm.keytab)
    library = tmp_path / "later_clock.so"
    source = Path(__file__).parent / "later_clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=120)
    script = f"""
import os
from pathlib import Path
from policy.identity.kerberos import Tickets
tickets = Tickets({PRINCIPAL!r}, Path({str(tmp_path / "svc.keytab")!r}).read_bytes(), 1)
for later in (0, 20, 100, 250):
    os.environ["LATER_SECONDS"] = str(later)
    print(tickets.begin({realm.endpoint.name!r}, b"", 20).lifetime_seconds)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    first, kept, renewed, anew = (int(line) for line in done.stdout.split())
    assert kept <= 120 < first
    assert min(renewed, anew) > 110  # the first one would have 40 left, and none


def test_each_step_is_told_to_the_administrator(realm: Realm) -> None:
    steps = list(check_directory(realm.settings(), realm.credentials, ALICE, datetime.now(UTC)))
    assert all(step.passed for step in steps), steps
    assert [step.name for step in steps][:6] == ["dns", "connect", "tls", "ticket", "bind", "base"]
    (ticket, _) = [step.detail for step in steps if step.name == "ticket"]
    assert ticket.startswith(f"ldap/dc1.{REALM}@{REALM.upper()}, good for ")


# --- what does not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["down", "hung"])
async def test_without_a_kdc_everybody_is_denied_within_the_deadline(realm: Realm, state: str) -> None:
    settings = realm.settings(deadline_seconds=3)
    ad = ActiveDirectory(settings, realm.credentials)
    with silent_kdc() as silent:
        realm.kdcs(silent if state == "hung" else closed_port())
        # A slow machine is given time; what libkrb5 alone would wait is longer. The second time it is known already.
        for bound in (settings.deadline_seconds + 10.0, settings.deadline_seconds):
            began = time.monotonic()
            with pytest.raises(DirectoryUnavailable) as caught:
                await groups_of_alice(ad)
            assert caught.value.check == "kerberos", caught.value
            assert time.monotonic() - began < bound
    realm.kdcs(*realm.own_kdcs)
    ad.use(realm.credentials)
    assert await groups_of_alice(ad) > 3
    ad.close()


def test_where_the_first_kdc_hangs_the_second_answers(realm: Realm) -> None:
    """libkrb5 gives it 10 s for each of two tickets; what it got is kept, also where nobody waits for it any more."""
    tickets = Tickets(PRINCIPAL, realm.keytab, at_once=1)
    with silent_kdc() as silent:
        realm.kdcs(silent, *realm.own_kdcs)
        with pytest.raises(DirectoryUnavailable, match="no KDC answered within"):
            tickets.begin(realm.endpoint.name, b"", 0.2)
        assert tickets.begin(realm.endpoint.name, b"", 120).lifetime_seconds > 3600


def test_threads_that_wait_for_a_kdc_are_counted(realm: Realm) -> None:
    tickets = Tickets(PRINCIPAL, realm.keytab, at_once=2)
    before = threading.active_count()
    with silent_kdc() as silent:
        realm.kdcs(silent)
        for _ in range(4):
            with pytest.raises(DirectoryUnavailable, match="kerberos"):
                tickets.begin(realm.endpoint.name, b"", 0.2)
        assert threading.active_count() <= before + 2


async def test_a_new_password_wants_a_new_keytab(realm: Realm, tmp_path: Path) -> None:
    controller = realm.domain.controllers[0]
    keytab = tmp_path / "other.keytab"
    with controller.administrator() as administrator:
        dn = add_user(administrator, "svc-other", userAccountControl="66048")
        controller.export_keytab(keytab, "svc-other")
        old = keytab.read_bytes()
        change(administrator, dn, unicodePwd='"An0ther-Passw0rd"'.encode("utf-16-le"))
    settings = realm.settings(controller, bind_user=f"svc-other@{REALM.upper()}")
    pem = realm.domain.authority.pem.decode()
    ad = ActiveDirectory(settings, Credentials("", pem, old))
    with pytest.raises(DirectoryUnavailable, match="Preauthentication failed") as caught:
        await groups_of_alice(ad)
    assert caught.value.check == "kerberos"
    (failed,) = [each for each in check_directory(settings, Credentials("", pem, old), None, datetime.now(UTC))
                 if not each.passed]  # fmt: skip
    assert (failed.name, "export `bind_keytab` anew" in str(failed.remedy)) == ("ticket", True)
    keytab.unlink()
    controller.export_keytab(keytab, "svc-other")
    ad.use(Credentials("", pem, keytab.read_bytes()))
    assert await groups_of_alice(ad) > 3
    ad.close()


def test_a_disabled_service_account_gets_no_ticket(realm: Realm, tmp_path: Path) -> None:
    controller = realm.domain.controllers[0]
    with controller.administrator() as administrator:
        dn = add_user(administrator, "svc-gone", userAccountControl="66048")
        controller.export_keytab(tmp_path / "gone.keytab", "svc-gone")
        change(administrator, dn, userAccountControl="66050")
    tickets = Tickets(f"svc-gone@{REALM.upper()}", (tmp_path / "gone.keytab").read_bytes(), 1)
    with pytest.raises(DirectoryUnavailable, match="revoked"):
        tickets.begin(realm.endpoint.name, b"", 5)


def test_a_controller_without_its_name_in_kerberos_is_named(realm: Realm) -> None:
    tickets = Tickets(PRINCIPAL, realm.keytab, 1)
    with pytest.raises(DirectoryUnavailable, match="Server not found in Kerberos database"):
        tickets.begin("dc9.corp.example.test", b"", 5)


def test_a_keytab_of_somebody_else_is_of_no_use(realm: Realm) -> None:
    with pytest.raises(DirectoryUnavailable, match="holds no key of alice@"):
        Tickets(f"alice@{REALM.upper()}", realm.keytab, 1).begin(realm.endpoint.name, b"", 5)


# --- hostile controllers, which have a certificate and not the controller's key ---------------------------------------


@pytest.fixture
def stranger(realm: Realm) -> str:
    """Has a service principal in the realm, so that a ticket for it is given."""
    name = hostile.NAME
    with realm.domain.controllers[0].administrator() as administrator, suppress(LDAPException):
        administrator.modify(
            f"CN=DC1,OU=Domain Controllers,{BASE}", {"servicePrincipalName": [(ldap3.MODIFY_ADD, [f"ldap/{name}"])]}
        )
    return name


def in_progress(token: bytes) -> bytes:
    """bindResponse, result 14, with the controller's token."""
    return hostile.result(0x61, 14, hostile.ber(0x87, token))


@pytest.mark.parametrize(
    ("bind", "problem"),
    [
        (hostile.result(0x61, 0), "before it had proved who it is"),
        (in_progress(b""), "does not prove who it is"),
        (in_progress(b"\x60\x03\x06\x01\x00"), "does not prove who it is"),
        (in_progress(bytes(200)), "does not prove who it is"),
    ],
    ids=["success", "nothing", "short", "zeros"],
)
def test_who_cannot_prove_to_be_the_controller_is_not_believed(
    realm: Realm, stranger: str, tmp_path: Path, bind: bytes, problem: str
) -> None:
    authority = realm.domain.authority
    with hostile.hostile_controller(tmp_path, authority, lambda *_: None, bind=bind) as port:
        endpoint = Endpoint(stranger, port, "127.0.0.1")
        with session_of(realm, endpoint=endpoint) as session:
            with pytest.raises(DirectoryUnavailable, match=problem) as caught:
                session.open()
            assert caught.value.check == "bind"


class Scripted:
    """A context that is complete, with a controller that offers what Samba does not offer inside TLS."""

    complete = True

    def __init__(self, offer: bytes) -> None:
        self.offer = offer

    def unwrap(self, _token: bytes) -> Any:
        return type("Unwrapped", (), {"message": self.offer})

    def wrap(self, message: bytes, _encrypt: bool) -> Any:
        return type("Wrapped", (), {"message": message})


def answers(*results: int) -> Callable[[bytes], dict[str, Any]]:
    waiting = iter(results)
    return lambda _: {"result": next(waiting), "saslCreds": b"x"}


@pytest.mark.parametrize("offer", [b"", b"\x01", b"\x06\xff\xff\xff", b"\x00\x00\x00\x00", b"\x01\x00\x00\x00\x00"])
def test_a_security_layer_inside_tls_is_not_taken(offer: bytes) -> None:
    with pytest.raises(DirectoryUnavailable, match="security layer"):
        authenticate(_handshake(offer), answers(14, 0))


def test_only_the_plain_offer_is_taken_and_only_so_often() -> None:
    assert authenticate(_handshake(b"\x01\x00\x00\x00"), answers(14, 0))["result"] == 0
    assert authenticate(_handshake(b"\x07\x01\x00\x00"), answers(14, 49))["result"] == 49
    with pytest.raises(DirectoryUnavailable, match="come to an end"):
        authenticate(_handshake(b"\x07\x01\x00\x00"), answers(*[14] * 9))


def _handshake(offer: bytes) -> Any:
    return type("Begun", (), {"context": Scripted(offer), "token": b""})


def test_the_token_is_good_over_this_connection_only(realm: Realm, tmp_path: Path) -> None:
    """Samba 4.17 checks no channel binding, so the controller's part is played here, with the controller's own key."""
    controller = realm.domain.controllers[0]
    controller.export_keytab(tmp_path / "dc.keytab", DC_SERVICE)
    binding = end_point_binding(_certificate_of(realm))
    tickets = Tickets(PRINCIPAL, realm.keytab, 1)

    def accept(bound_to: bytes) -> None:
        acceptor = gssapi.SecurityContext(
            usage="accept",
            creds=gssapi.Credentials(usage="accept", store={"keytab": f"FILE:{tmp_path / 'dc.keytab'}"}),
            channel_bindings=ChannelBindings(application_data=bound_to),
        )
        acceptor.__DEFER_STEP_ERRORS__ = False
        acceptor.step(tickets.begin(realm.endpoint.name, binding, 5).token)

    accept(binding)
    with pytest.raises(gssapi.exceptions.BadChannelBindingsError):
        accept(end_point_binding(_certificate_of(realm, 1)))


def _certificate_of(realm: Realm, number: int = 0) -> bytes:
    return ssl.PEM_cert_to_DER_cert((realm.domain.controllers[number].folder / "tls" / "server.pem").read_text())


# --- what the operator gives --------------------------------------------------------------------------------------


def test_without_the_package_the_start_says_what_to_install(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    with pytest.raises(DirectoryRefused, match=r"sealane\[gssapi\]"):
        read_credentials(realm.settings(), tmp_path)


async def test_the_keytab_that_was_judged_is_the_one_that_is_used(realm: Realm, tmp_path: Path) -> None:
    file = tmp_path / "svc.keytab"
    file.write_bytes(realm.keytab)
    file.chmod(0o600)
    (tmp_path / "ad-ca.pem").write_bytes(realm.domain.authority.pem)
    ad = ActiveDirectory(realm.settings(), read_credentials(realm.settings(), tmp_path))
    file.unlink()
    assert await groups_of_alice(ad) > 3
    ad.close()

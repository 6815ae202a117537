"""One connection against a controller that is hostile, or ill in ways that Samba is not."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ldap3
import pytest
from ldap3.core.exceptions import LDAPException

from policy.errors import AccountRefused, DirectoryUnavailable
from policy.identity.directory_account import AccountName
from policy.identity.directory_session import Session
from policy.identity.directory_settings import Credentials, DirectorySettings
from policy.identity.directory_socket import ServerTls
from policy.identity.sids import encode_sid
from tests.policy.identity.hostile_controller import (
    NAME,
    Answer,
    entry,
    hostile_controller,
    message,
    referral_to,
    result,
)
from tests.policy.identity.samba_ad import TestAuthority

ALICE = AccountName("userPrincipalName", "alice@corp.example")
DONE = result(0x65, 0)


@pytest.fixture(scope="module")
def authority() -> TestAuthority:
    return TestAuthority()


@contextmanager
def session_with(folder: Path, authority: TestAuthority, answer: Answer, **changes: Any) -> Iterator[Session]:
    with hostile_controller(folder, authority, answer) as port:
        settings = settings_for(port, **changes)
        session = Session(settings.checked_controllers()[0], settings, credentials(authority), 0)
        try:
            session.open()
            yield session
        finally:
            session.close()


def credentials(authority: TestAuthority) -> Credentials:
    return Credentials("the-password", authority.pem.decode())


def settings_for(port: int, **changes: Any) -> DirectorySettings:
    values: dict[str, Any] = {
        "controllers": (f"{NAME}:{port}",),
        "addresses": {NAME: "127.0.0.1"},
        "trust_bundle": "-",
        "base": "DC=corp,DC=example",
        "domain": "CORP",
        "bind_user": "svc@corp.example",
        "bind_password_file": "-",
        "connect_seconds": 1,
        "receive_seconds": 1,
        **changes,
    }
    return DirectorySettings(**values)


@pytest.fixture
def clear_text_server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        yield listener


def test_a_referral_to_a_clear_text_server_is_not_followed(
    tmp_path: Path, authority: TestAuthority, clear_text_server: socket.socket
) -> None:
    url = f"ldap://127.0.0.1:{clear_text_server.getsockname()[1]}/DC=corp,DC=example"
    referral = session_with(tmp_path, authority, lambda number, _: message(number, referral_to(url)))
    with referral as session, pytest.raises(DirectoryUnavailable, match="another server, which is not asked"):
        session.find(ALICE)
    with pytest.raises(TimeoutError):
        clear_text_server.accept()


def test_ldap3_as_it_comes_hands_the_password_to_that_server(
    tmp_path: Path, authority: TestAuthority, clear_text_server: socket.socket
) -> None:
    """Shows that the test above would notice."""
    url = f"ldap://127.0.0.1:{clear_text_server.getsockname()[1]}/DC=corp,DC=example"
    with hostile_controller(tmp_path, authority, lambda number, _: message(number, referral_to(url))) as port:
        tls = ServerTls(NAME, authority.pem.decode())
        tls.context.sslsocket_class = ssl.SSLSocket
        server = ldap3.Server("127.0.0.1", port, use_ssl=True, tls=tls, get_info=ldap3.NONE, connect_timeout=1)
        connection = ldap3.Connection(server, "svc", "the-password", check_names=False, receive_timeout=1)
        connection.bind()
        with pytest.raises(LDAPException):
            connection.search("DC=corp", "(cn=x)")
        connection.strategy.close()
    taken, _ = clear_text_server.accept()
    with taken:
        assert b"the-password" in taken.recv(4096)


def test_references_beside_the_entry_are_dropped(tmp_path: Path, authority: TestAuthority) -> None:
    reference = b"\x73\x13\x04\x11ldap://127.0.0.1/"

    def answer(number: int, _: int) -> bytes:
        return message(number, reference) + message(number, DONE)

    with session_with(tmp_path, authority, answer) as session, pytest.raises(AccountRefused, match="no such account"):
        session.find(ALICE)


def test_the_account_that_comes_back_must_be_the_one_asked_for(tmp_path: Path, authority: TestAuthority) -> None:
    other = entry(
        "CN=bob", userPrincipalName=b"bob@corp.example", objectGUID=bytes(16), objectSid=encode_sid("S-1-5-21-1")
    )

    def answer(number: int, _: int) -> bytes:
        return message(number, other) + message(number, DONE)

    with session_with(tmp_path, authority, answer) as session, pytest.raises(AccountRefused, match="another account"):
        session.find(ALICE)


@pytest.mark.parametrize("code", [1, 2, 3, 11, 50, 51, 52, 53, 80])
def test_a_search_that_did_not_succeed_is_not_an_empty_one(tmp_path: Path, authority: TestAuthority, code: int) -> None:
    failing = session_with(tmp_path, authority, lambda number, _: message(number, result(0x65, code)))
    with failing as session, pytest.raises(DirectoryUnavailable):
        session.find(ALICE)


@pytest.mark.parametrize(
    "junk",
    [b"\x30\x03\x02\x01\x01", b"HTTP/1.1 200 OK\r\n\r\n", b"\x30\x84\xff\xff\xff\xff",
     b"\x30\x05\x02\x01\x63\x65\x00"],
)  # fmt: skip
def test_bytes_that_are_no_ldap_end_the_call(tmp_path: Path, authority: TestAuthority, junk: bytes) -> None:
    with session_with(tmp_path, authority, lambda *_: junk) as session:
        started = time.monotonic()
        with pytest.raises(DirectoryUnavailable):
            session.find(ALICE)
        assert time.monotonic() - started < 3


def test_an_answer_byte_by_byte_ends_with_the_step(tmp_path: Path, authority: TestAuthority) -> None:
    """Each byte came in time: a thread and a place among the connections were its, for as long as it liked."""

    def drip(number: int, _: int) -> Iterator[bytes]:
        for byte in message(number, DONE):
            time.sleep(0.4)  # what the attack is made of
            yield bytes([byte])

    with session_with(tmp_path, authority, drip) as session:
        started = time.monotonic()
        with pytest.raises(DirectoryUnavailable) as late:
            session.find(ALICE)
        assert (late.value.check, time.monotonic() - started < 2) == ("timeout", True)


def test_an_answer_without_an_end_is_read_up_to_the_limit(tmp_path: Path, authority: TestAuthority) -> None:
    def flood(number: int, _: int) -> Iterator[bytes]:
        one = message(number, entry("CN=alice", description=bytes(1000)))
        yield from [one * 50] * 100
        yield message(number, DONE)

    flooding = session_with(tmp_path, authority, flood, receive_seconds=30)
    with flooding as session, pytest.raises(DirectoryUnavailable, match="over 1048576 bytes"):
        session.find(ALICE)


def test_an_answer_to_another_question_is_not_taken(tmp_path: Path, authority: TestAuthority) -> None:
    confused = session_with(tmp_path, authority, lambda number, _: message(number + 1, DONE))
    with confused as session, pytest.raises(DirectoryUnavailable):
        session.find(ALICE)


def test_a_controller_that_hangs_up(tmp_path: Path, authority: TestAuthority) -> None:
    with session_with(tmp_path, authority, lambda *_: None) as session, pytest.raises(DirectoryUnavailable) as lost:
        session.find(ALICE)
    assert lost.value.check == "connect"


def test_a_port_that_speaks_no_tls(authority: TestAuthority, clear_text_server: socket.socket) -> None:
    settings = settings_for(clear_text_server.getsockname()[1])
    session = Session(settings.checked_controllers()[0], settings, credentials(authority), 0)
    with pytest.raises(DirectoryUnavailable) as refused:
        session.open()
    assert refused.value.check == "timeout"


def test_tls_before_1_2_is_not_spoken(authority: TestAuthority) -> None:
    context = ServerTls(NAME, authority.pem.decode()).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_name_that_cannot_be_resolved_and_a_closed_port(authority: TestAuthority) -> None:
    for changes, check in (
        ({"controllers": ("dc1.nowhere.invalid",), "addresses": {}}, "dns"),
        ({"controllers": (f"{NAME}:1",)}, "connect"),
    ):
        settings = settings_for(1, **changes)
        session = Session(settings.checked_controllers()[0], settings, credentials(authority), 0)
        with pytest.raises(DirectoryUnavailable) as refused:
            session.open()
        assert refused.value.check == check

"""A token goes to the proven gateway alone, over the one connection that there is, whatever who answers tries."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.enrolment import EnrolmentToken
from certs.errors import CredentialError
from tests.certs.chains import CLIENT, DAY, NOW, SERVER, Ca, Host, make_ca, make_host
from transport.relay import first_contact as module
from transport.relay.first_contact import first_contact
from transport.relay.gateway_answers import GatewayAway, GatewayRefuses

SECRET = "token-that-nobody-else-may-see"
LIMIT = 4096
ROOT = make_ca("Root of the gateway")
ENDLESS = b"HTTP/1.1 200 X\r\ncontent-length: 4000\r\n\r\n"  # then a byte every 20 ms
Answer = Callable[[str], bytes | None]


def gateway_of(ca: Ca, **defect: Any) -> Host:
    sound: dict[str, Any] = {"uris": (), "dns_names": ["localhost"], "common_name": "gateway", "usages": [SERVER]}
    return make_host(ca, **{**sound, **defect})


def http(status: int, body: bytes = b"{}", *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def root_answer(ca: Ca, *headers: str) -> bytes:
    return http(200, json.dumps({"root": ca.certificate.public_bytes(Encoding.PEM).decode()}).encode(), *headers)


def answering(ca: Ca) -> Answer:
    """As a gateway does."""
    return lambda path: root_answer(ca) if path == "/v1/enrolment/root" else http(200, b'"welcome"')


@dataclass
class Peer:
    """Somebody who listens and answers as told, and remembers all that it was sent."""

    url: str
    connections: int = 0
    requests: list[str] = field(default_factory=list)
    heard: bytes = b""
    drops: int = 0
    answered: int = 0  # whole answers, that the other side took

    @property
    def knows_the_secret(self) -> bool:
        return SECRET.encode() in self.heard


@contextmanager
def peer(
    folder: Path, host: Host, sent: Sequence[x509.Certificate], answer: Answer, newest: int = ssl.TLSVersion.TLSv1_3
) -> Iterator[Peer]:
    """`sent`: all that it presents, its own leaf first. An answer None: it says nothing, for as long as it takes."""
    pem = folder / f"{len(list(folder.iterdir()))}.pem"
    key = host.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(key + b"".join(each.public_bytes(Encoding.PEM) for each in sent))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion(newest)
    context.load_cert_chain(pem)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        found = Peer(f"https://localhost:{listener.getsockname()[1]}")

        def serve() -> None:
            while not over.is_set():
                try:
                    bare, _ = listener.accept()
                except TimeoutError:
                    continue
                found.connections += 1
                bare.settimeout(10)
                try:
                    with context.wrap_socket(bare, server_side=True) as stream:
                        _serve(stream, found, answer, over)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()


def _serve(stream: ssl.SSLSocket, found: Peer, answer: Answer, over: threading.Event) -> None:
    while True:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := stream.recv(65_536)):
                return
            head += data
            found.heard += data
        head, _, body = head.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        while len(body) < length:
            data = stream.recv(65_536)
            body += data
            found.heard += data
        method, path, _ = head.decode().split(" ", 2)
        found.requests.append(f"{method} {path}")
        said = answer(path)
        if said is None:
            over.wait(10)
            return
        stream.sendall(said)
        found.answered += 1
        while said is ENDLESS and not over.wait(0.02):
            stream.sendall(b"x")
            found.drops += 1
        if b"connection: close" in said:
            return


def token_of(ca: Ca) -> EnrolmentToken:
    return EnrolmentToken("host-a", ca.certificate.fingerprint(hashes.SHA256()), b"\x07" * 32)


def enrol(url: str, ca: Ca = ROOT) -> bytes:
    with first_contact(url) as unproven:
        return unproven.prove(token_of(ca), NOW).post("/v1/enrolment", {"token": SECRET}, LIMIT)


def test_a_gateway_that_presents_its_root_is_asked_once_over_one_connection(tmp_path: Path) -> None:
    gateway = gateway_of(ROOT)
    with peer(tmp_path, gateway, [gateway.certificate, ROOT.certificate], answering(ROOT)) as found:
        assert enrol(found.url) == b'"welcome"'
    assert (found.connections, found.requests) == (1, ["POST /v1/enrolment"])


@pytest.mark.parametrize("below", [0, 1, 2], ids=["of the root", "of a CA below", "of a CA two below"])
def test_one_that_does_not_is_asked_for_it_over_the_same_connection(tmp_path: Path, below: int) -> None:
    ca = ROOT
    for number in range(below):
        ca = make_ca(f"below {number}", parent=ca)
    gateway = gateway_of(ca)
    with peer(tmp_path, gateway, gateway.chain, answering(ROOT)) as found:
        assert enrol(found.url) == b'"welcome"'
    assert (found.connections, found.requests) == (1, ["GET /v1/enrolment/root", "POST /v1/enrolment"])


OTHER = make_ca("Root of somebody in between")
TRUE = gateway_of(ROOT)
MINE = gateway_of(OTHER)
HOST_OF_THE_SITE = make_host(ROOT, "host-z")
IN_BETWEEN: dict[str, tuple[Host, Sequence[x509.Certificate], Ca]] = {
    "with a CA of its own, which it owns up to": (MINE, [MINE.certificate, OTHER.certificate], OTHER),
    "that hands out the true root": (MINE, [MINE.certificate], ROOT),
    "that presents the true root behind its own leaf": (MINE, [MINE.certificate, ROOT.certificate], ROOT),
    "that presents the true chain behind its own leaf": (
        MINE,
        [MINE.certificate, OTHER.certificate, TRUE.certificate, ROOT.certificate],
        ROOT,
    ),
    "that has a host's certificate of the site": (
        HOST_OF_THE_SITE,
        [HOST_OF_THE_SITE.certificate, ROOT.certificate],
        ROOT,
    ),
    **{
        f"whose certificate is {defect}": (bad, [*bad.chain, ROOT.certificate], ROOT)
        for defect, bad in {
            "of another name": gateway_of(ROOT, dns_names=["gateway.other.example"]),
            "of a name only in its common name": gateway_of(ROOT, dns_names=(), common_name="localhost"),
            "expired": gateway_of(ROOT, not_before=NOW - 3 * DAY, not_after=NOW - DAY),
            "not yet valid": gateway_of(ROOT, not_before=NOW + DAY, not_after=NOW + 3 * DAY),
            "for clients": gateway_of(ROOT, usages=[CLIENT]),
            "a CA's": gateway_of(ROOT, is_ca=True),
            "without key identifiers": gateway_of(ROOT, with_key_ids=False),
            "of a CA that may not be one": gateway_of(make_ca("no CA", parent=ROOT, is_ca=False)),
            "signed by a stranger": gateway_of(ROOT, signer=OTHER.key),
            "of a CA that has expired": gateway_of(
                make_ca("old", parent=ROOT, not_before=NOW - 3 * DAY, not_after=NOW - DAY)
            ),
        }.items()
    },
}


@pytest.mark.parametrize("who", IN_BETWEEN)
def test_somebody_in_between_is_not_sent_the_token(who: str, tmp_path: Path) -> None:
    host, sent, handed_out = IN_BETWEEN[who]
    with peer(tmp_path, host, sent, answering(handed_out)) as found, pytest.raises(CredentialError):
        enrol(found.url)
    assert not found.knows_the_secret
    assert found.connections == 1
    assert found.requests in ([], ["GET /v1/enrolment/root"])


def test_a_peer_that_presents_very_many_certificates_is_not_sent_it(tmp_path: Path) -> None:
    strangers = [make_ca(f"stranger {number}").certificate for number in range(8)]
    sent = [TRUE.certificate, *strangers, ROOT.certificate]
    with peer(tmp_path, TRUE, sent, answering(ROOT)) as found, pytest.raises(CredentialError, match="not 1 to 8"):
        enrol(found.url)
    assert not found.knows_the_secret


def test_no_redirect_is_followed_neither_for_the_root_nor_with_the_token(tmp_path: Path) -> None:
    with peer(tmp_path, MINE, [MINE.certificate], answering(ROOT)) as elsewhere:
        away = http(307, b"", f"location: {elsewhere.url}/v1/enrolment")
        for sent in ([TRUE.certificate], [TRUE.certificate, ROOT.certificate]):
            with peer(tmp_path, TRUE, sent, lambda _: away) as found, pytest.raises(GatewayAway, match="307"):
                enrol(found.url)
            assert found.connections == 1
    assert (elsewhere.connections, elsewhere.knows_the_secret) == (0, False)


def test_where_the_connection_ends_after_the_root_no_second_one_is_made(tmp_path: Path) -> None:
    """The next one at that address may be somebody else."""
    answer = root_answer(ROOT, "connection: close")
    with peer(tmp_path, TRUE, [TRUE.certificate], lambda _: answer) as found, pytest.raises(GatewayAway):
        enrol(found.url)
    assert (found.connections, found.requests) == (1, ["GET /v1/enrolment/root"])
    assert not found.knows_the_secret


@pytest.mark.parametrize(
    "answer",
    [
        http(200, b"x" * (module.MAX_ROOT_BYTES + 1)),
        http(200, b"{}"),
        http(200, b'{"root": "-----BEGIN"}'),
        b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 X\r\ncontent-length: 99\r\nconnection: close\r\n\r\nshort",
        b"HTTP/1.1 200 X\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=["too long", "without a root", "half a root", "an upgrade", "another protocol", "cut short", "a long header"],
)
def test_whatever_the_unproven_answers_to_the_question_for_its_root_it_is_not_sent_the_token(
    answer: bytes, tmp_path: Path
) -> None:
    with peer(tmp_path, TRUE, [TRUE.certificate], lambda _: answer) as found, pytest.raises(GatewayAway):
        enrol(found.url)
    assert not found.knows_the_secret


def test_words_of_the_unproven_cannot_rule_the_terminal(tmp_path: Path) -> None:
    words = json.dumps({"error": {"message": "\x1b]0;owned\x07 type your password", "next_step": ""}}).encode()
    with (
        peer(tmp_path, TRUE, [TRUE.certificate], lambda _: http(404, words)) as found,
        pytest.raises(GatewayRefuses) as refused,
    ):
        enrol(found.url)
    assert str(refused.value).isprintable()
    assert refused.value.status == 404


def test_a_peer_that_answers_nothing_ends_within_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def answer(path: str) -> bytes | None:
        """Its root, and to the token nothing. A short deadline from there on: neither is the handshake what is late."""
        monkeypatch.setattr(module, "SECONDS", 0.5)
        return answering(ROOT)(path) if path == "/v1/enrolment/root" else None

    with (
        peer(tmp_path, TRUE, [TRUE.certificate], answer) as found,
        pytest.raises(GatewayAway, match=r"/v1/enrolment: .*no answer in time"),
    ):
        enrol(found.url)
    assert found.requests == ["GET /v1/enrolment/root", "POST /v1/enrolment"]


def test_somebody_deaf_ends_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(GatewayAway, match="no answer in time"):
        enrol(f"https://localhost:{deaf.getsockname()[1]}")


def test_an_answer_in_drops_ends_within_the_deadline_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline for each read alone would be one for ever. By a clock that each drop puts on by a second."""
    with peer(tmp_path, TRUE, [TRUE.certificate, ROOT.certificate], lambda _: ENDLESS) as found:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(found.drops)))
        with pytest.raises(GatewayAway, match=r"/v1/enrolment: .*no answer in time"):
            enrol(found.url)
    assert found.requests == ["POST /v1/enrolment"]
    assert found.drops >= module.SECONDS


def test_a_peer_that_goes_on_announcing_its_answer_ends_within_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It always has something more to say, so there is never a wait. By a clock that goes on at each look."""
    flood = b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000_000
    ticks = itertools.count()
    with peer(tmp_path, TRUE, [TRUE.certificate], lambda _: flood) as found:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))
        with pytest.raises(GatewayAway, match="no answer in time"):
            enrol(found.url)
    assert (found.requests, found.answered) == (["GET /v1/enrolment/root"], 0)


def test_an_older_tls_is_refused(tmp_path: Path) -> None:
    with (
        peer(tmp_path, TRUE, [TRUE.certificate, ROOT.certificate], answering(ROOT), ssl.TLSVersion.TLSv1_2) as found,
        pytest.raises(GatewayAway, match="handshake"),
    ):
        enrol(found.url)
    assert found.requests == []


def test_nobody_there_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
    with pytest.raises(GatewayAway, match="refused"):
        enrol(url)


def test_the_answer_with_the_certificate_is_bounded_too(tmp_path: Path) -> None:
    long = http(200, b"x" * (LIMIT + 1))
    with (
        peer(tmp_path, TRUE, [TRUE.certificate, ROOT.certificate], lambda _: long) as found,
        pytest.raises(GatewayAway, match="too long"),
    ):
        enrol(found.url)

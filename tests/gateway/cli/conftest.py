"""A small HTTPS server that answers canned shapes of the gateway's API, and the command run against it."""

from __future__ import annotations

import base64
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from typer.testing import Result

from gateway.cli import waiting
from tests.gateway.cli.invoking import invoke

MIGRATION = "0197c0de-1111-7222-8333-444455556666"
DIGEST = "ab" * 32
ALLOWED = {
    "allowed": True,
    "denied_because": None,
    "policies": [{"id": "operators-move", "effect": "permit", "reason": "operators move what is theirs"}],
    "errors": [],
    "bundle_digest": DIGEST,
}
DENIED = {
    "allowed": False,
    "denied_because": "a policy forbids it",
    "policies": [{"id": "card-data-stays", "effect": "forbid", "reason": "card data stays in its zone"}],
    "errors": [],
    "bundle_digest": DIGEST,
}


@dataclass
class Asked:
    """A request as the server saw it."""

    method: str
    path: str
    authorization: str | None
    body: Any


@dataclass
class CannedGateway:
    """`answers[(method, path without query)]`: statuses and bodies in turn; the last one repeats."""

    url: str
    ca: Path
    answers: dict[tuple[str, str], list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    is_away: bool = False

    def answer(self, method: str, path: str, *answers: tuple[int, Any]) -> None:
        self.answers[method, path] = list(answers)

    def take(self, method: str, path: str) -> tuple[int, Any]:
        waiting = self.answers.get((method, path.partition("?")[0]), [(404, {"unknown": path})])
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "canned gateway")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "tls.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "tls.pem", folder / "tls.key"


@pytest.fixture
def canned(tls_files: tuple[Path, Path]) -> Iterator[CannedGateway]:
    with _serving(tls_files) as gateway:
        yield gateway


@pytest.fixture
def other_canned(tls_files: tuple[Path, Path]) -> Iterator[CannedGateway]:
    """The site's other gateway."""
    with _serving(tls_files) as gateway:
        yield gateway


@contextmanager
def _serving(tls_files: tuple[Path, Path]) -> Iterator[CannedGateway]:
    certificate, key = tls_files
    gateway = CannedGateway("", certificate)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one segment: in two they wait 40 ms for each other

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if gateway.is_away:
                self.close_connection = True
                return
            gateway.asked.append(Asked(self.command, self.path, self.headers.get("authorization"), body))
            status, answer = gateway.take(self.command, self.path)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status // 100 == 3:
                self.send_header("location", "https://127.0.0.1:1/elsewhere")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815 - the library's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Silence."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Server(ThreadingHTTPServer):
        def get_request(self) -> Any:
            connection, address = super().get_request()
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that refuses our certificate is no error of this server."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    gateway.url = f"https://127.0.0.1:{server.server_address[1]}"
    yield gateway
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder of the person who runs the command."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


Sealane = Callable[..., Result]


@pytest.fixture
def sealane(home: Path, monkeypatch: pytest.MonkeyPatch) -> Sealane:
    """Run `sealane ARGS…`; that it lasts long on a busy machine is not told."""
    monkeypatch.setattr(waiting, "NOTICE_SECONDS", 3600.0)

    def run(*arguments: object, stdin: str | None = None) -> Result:
        environment = {"HOME": str(home), "COLUMNS": "40", "NO_COLOR": "1"}
        return invoke(*arguments, stdin=stdin, env=environment)

    return run


@pytest.fixture
def logged_in(home: Path, canned: CannedGateway) -> CannedGateway:
    """The canned gateway, configured in client.toml, with a token."""
    folder = home / ".config" / "sealane"
    folder.mkdir(parents=True)
    (folder / "client.toml").write_text(f'gateway = "{canned.url}"\nca = "{canned.ca}"\n')
    token = folder / "token.json"
    token.write_text(json.dumps({"access_token": "aa.bb.cc", "expires_at": 4_000_000_000, "gateway": canned.url}))
    token.chmod(0o600)
    return canned


def token_of(person: str, number: int) -> str:
    """A JWT by form; each number is another one."""
    claims = json.dumps({"iss": "sealane-local", "sub": person, "jti": str(number)}).encode()
    return f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


def last_object(result: Result) -> dict[str, Any]:
    """The JSON object on the last line of stdout."""
    document = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(document, dict)
    return document


def only_error_line(result: Result) -> str:
    """The one line of stderr."""
    assert result.stderr.count("\n") == 1, result.stderr
    return str(result.stderr)

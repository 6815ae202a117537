"""Keycloak as a process on loopback over HTTPS, with one realm; it takes about a minute to start, and 700 MB."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
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

from bench.peers import free_port
from certs.authority import Authority
from certs.files import write_private_key
from tests.oidc_provider.process import context_of

SERVER = Path(__file__).parents[2] / ".keycloak" / "server"
REALM, AUDIENCE, PUBLIC, ROBOT, ELSEWHERE = "bank", "https://sealane.example", "sealane-cli", "orchestrator", "another"
PASSWORD = "made up for this test"
START_SECONDS = 900.0  # two minutes on a quiet machine
_FORM = re.compile(r'<form\b[^>]*action="([^"]*)"', re.DOTALL)


class Keycloak:
    """One server with the realm `bank`. `ca` is the PEM file that its certificate is verified with."""

    def __init__(self, folder: Path) -> None:
        assert SERVER.is_dir(), "run `make keycloak`, which fetches it"
        now = datetime.now(UTC)
        (folder / "ca").mkdir()
        authority = Authority.create(folder / "ca", "issuer.test", now)
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.issue_gateway("kc", key.public_key(), ["localhost"], ["127.0.0.1"], now, timedelta(hours=1))
        write_private_key(folder / "tls.key", key)
        (folder / "tls.pem").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        port = free_port()
        self.url = f"https://localhost:{port}"
        self.issuer = f"{self.url}/realms/{REALM}"
        self._admin_password = secrets.token_hex(16)
        self.robot_secret = secrets.token_hex(16)
        imported = SERVER / "data" / "import"
        imported.mkdir(parents=True, exist_ok=True)
        (imported / "bank-realm.json").write_text(json.dumps(self._realm()))
        command = [str(SERVER / "bin" / "kc.sh"), "start-dev", "--import-realm", "--db=dev-mem", "--cache=local"]
        command += ["--http-host=127.0.0.1", "--http-enabled=false", f"--https-port={port}", f"--hostname={self.url}"]
        command += [
            f"--https-certificate-file={folder / 'tls.pem'}",
            f"--https-certificate-key-file={folder / 'tls.key'}",
        ]
        command += [f"--http-management-port={free_port()}"]
        self._log = folder / "keycloak.log"
        environment = {
            **os.environ,
            "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
            "KC_BOOTSTRAP_ADMIN_PASSWORD": self._admin_password,
            "JAVA_OPTS_KC_HEAP": "-Xms128m -Xmx512m",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.http = httpx.Client(verify=context_of(self.ca), trust_env=False, timeout=120)

    def wait_started(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.http.get(f"{self.issuer}/.well-known/openid-configuration").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < end, self._log.read_text()[-3000:]
            time.sleep(0.5)

    def close(self) -> None:
        self.http.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tokens(self, username: str, client: str = PUBLIC, **more: str) -> dict[str, Any]:
        """By the password grant: what a person would get after the forms of any other."""
        form = {"grant_type": "password", "client_id": client, "username": username, "password": PASSWORD, **more}
        return self._token(form)

    def robot_tokens(self) -> dict[str, Any]:
        form = {"grant_type": "client_credentials", "client_id": ROBOT, "client_secret": self.robot_secret}
        return self._token(form)

    def robot_id(self) -> str:
        """The `sub` of the service account: Keycloak makes it up."""
        (client,) = self._admin("GET", f"clients?clientId={ROBOT}").json()
        return str(self._admin("GET", f"clients/{client['id']}/service-account-user").json()["id"])

    def rotate(self) -> None:
        """A new key of higher priority signs from now on; the old one stays published."""
        keys = {
            "name": "newer",
            "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": ["1000"], "enabled": ["true"], "active": ["true"], "algorithm": ["RS256"]},
        }
        assert self._admin("POST", "components", keys).status_code == 201

    def grant_device(self, where: str, code: str, username: str) -> None:
        """What a person does with a browser: enter the code, sign in, and say yes."""
        with httpx.Client(verify=context_of(self.ca), trust_env=False, timeout=120, follow_redirects=True) as browser:
            page = browser.get(where, params={"user_code": code})  # as if it had been typed into the first page
            page = browser.post(_action(page), data={"username": username, "password": PASSWORD, "credentialId": ""})
            page = browser.post(_action(page), data={"accept": "Yes"})
            assert "success" in page.text.lower(), page.text[:2000]

    def _token(self, form: dict[str, str]) -> dict[str, Any]:
        answer = self.http.post(f"{self.issuer}/protocol/openid-connect/token", data=form)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def _admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        form = {
            "grant_type": "password",
            "client_id": "admin-cli",
            "username": "admin",
            "password": self._admin_password,
        }
        answer = self.http.post(f"{self.url}/realms/master/protocol/openid-connect/token", data=form)
        token = {"authorization": f"Bearer {answer.json()['access_token']}"}
        return self.http.request(method, f"{self.url}/admin/realms/{REALM}/{path}", json=body, headers=token)

    def _realm(self) -> dict[str, Any]:
        """As docs/identity.md tells an administrator to set it up."""
        audience = _mapper("audience", "oidc-audience-mapper", {"included.custom.audience": AUDIENCE})
        groups = _mapper("groups", "oidc-group-membership-mapper", {"claim.name": "groups", "full.path": "false"})
        public = {
            "publicClient": True,
            "directAccessGrantsEnabled": True,
            "attributes": {"oauth2.device.authorization.grant.enabled": "true", "pkce.code.challenge.method": "S256"},
            "redirectUris": ["http://127.0.0.1/*"],
        }
        return {
            "realm": REALM,
            "enabled": True,
            "accessTokenLifespan": 300,
            "groups": [{"name": "operators"}, {"name": "guests"}],
            "users": [_user("alice", "operators"), _user("bob", "guests")],
            "clients": [
                {"clientId": PUBLIC, **public, "protocolMappers": [audience, groups]},
                {"clientId": ELSEWHERE, **public, "protocolMappers": [groups]},
                {
                    "clientId": ROBOT,
                    "publicClient": False,
                    "serviceAccountsEnabled": True,
                    "secret": self.robot_secret,
                    "protocolMappers": [audience, groups],
                },
            ],
        }


def _mapper(name: str, kind: str, config: dict[str, str]) -> dict[str, Any]:
    where = {"access.token.claim": "true", "id.token.claim": "true"}
    return {"name": name, "protocol": "openid-connect", "protocolMapper": kind, "config": {**config, **where}}


def _user(name: str, group: str) -> dict[str, Any]:
    password = {"type": "password", "value": PASSWORD, "temporary": False}
    person = {"firstName": name.title(), "lastName": "Example", "email": f"{name}@bank.example", "emailVerified": True}
    return {"username": name, "enabled": True, **person, "groups": [f"/{group}"], "credentials": [password]}


def _action(page: httpx.Response) -> str:
    found = _FORM.search(page.text)
    assert found is not None, page.text[:2000]
    return urljoin(str(page.url), unescape(found[1]))


@contextmanager
def keycloak(folder: Path) -> Iterator[Keycloak]:
    server = Keycloak(folder)
    try:
        server.wait_started()
        yield server
    finally:
        server.close()

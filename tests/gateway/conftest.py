"""A whole site in a folder and a running gateway in this process, on a free port."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

import gateway.config as configuration
from audit.log import Log
from certs.files import read_certificates, read_private_key
from gateway.clocks import system_clock
from gateway.log_keeping import log_signer
from gateway.recording import Clock, Event, Recorded, Recorder
from gateway.service import Gateway, serve
from gateway.starter import AUDIENCE, LOCAL_ISSUER, HostPlan, Site, VmPlan, lay_out_site
from policy.bundle import Bundle
from policy.identity.local import LocalDirectory, ScryptCost, issue_token
from policy.permit import PermitKey, VerifiedPermit, verify_permit
from transport.link_version import HEADER, NEWEST

UUID_WEB = "11111111-2222-4333-8444-555555555555"
UUID_LEDGER = "99999999-2222-4333-8444-555555555555"
HOSTS = (
    HostPlan("a", "127.0.0.2:7443"),
    HostPlan("b", "127.0.0.3:7443"),
    HostPlan("c", "127.0.0.4:7443"),
    HostPlan("prod", "127.0.0.5:7443", zone="production"),
)
VMS = (VmPlan("web", UUID_WEB, "a"), VmPlan("ledger", UUID_LEDGER, "prod", zone="production"))
CHEAP = ScryptCost(14, 8, 1)
PATIENCE_SECONDS = 60.0  # for an answer that is due at once


@pytest.fixture(scope="session")
def pristine_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Laid out once; tests get copies."""
    folder = tmp_path_factory.mktemp("site") / "site"
    return lay_out_site(folder, hosts=HOSTS, vms=VMS, now=datetime.now(UTC), password_cost=CHEAP)


@pytest.fixture(scope="session", autouse=True)
def bundles_load_once() -> Iterator[None]:
    """The example bundle's own tests run once, not in each test's gateway; bundles that differ are loaded as ever."""
    loaded: dict[tuple[tuple[str, str], ...], Bundle] = {}
    real = Bundle.from_files

    def load(files: Mapping[str, str]) -> Bundle:
        key = tuple(sorted(files.items()))
        if key not in loaded:
            loaded[key] = real(files)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "from_files", staticmethod(load))
        yield


@pytest.fixture
def site(pristine_site: Site, tmp_path: Path) -> Site:
    """A site of the test's own: hosts a, b, c (zone test) and prod; VMs web on a, ledger on prod."""
    shutil.copytree(pristine_site.directory, tmp_path / "site")
    return Site(tmp_path / "site", pristine_site.trust_domain, pristine_site.log_origin, pristine_site.passwords)


@dataclass
class FaultyLog:
    """Opens the real log, whose commits fail while `broken` is set: the disk is full, say."""

    site: Site
    broken: bool = False
    opened: int = 0

    def __call__(self) -> Log:
        self.opened += 1
        log = Log.open(self.site.log, log_signer(configuration.load(self.site.gateway_config)))
        if self.broken:
            log.close()
            raise OSError(28, "No space left on device")
        real = log._store.append

        def append(*args: Any) -> None:
            if self.broken:
                raise OSError(28, "No space left on device")
            real(*args)

        log._store.append = append  # type: ignore[method-assign,assignment]
        return log


@dataclass
class Running:
    """A running gateway and clients for it."""

    site: Site
    gateway: Gateway
    log: FaultyLog
    _clients: list[httpx.AsyncClient] = field(default_factory=list)
    _ca: Path | None = None

    def trusts(self, ca: Path) -> None:
        """Clients made from now on know the gateway by this CA."""
        self._ca = ca

    @property
    def ca(self) -> Path:
        return self._ca or self.site.ca

    @property
    def url(self) -> str:
        return f"https://{self.gateway.listen}"

    def client(
        self, host: str | None = None, credentials: tuple[Path, Path] | None = None, link: str | None = str(NEWEST)
    ) -> httpx.AsyncClient:
        """A keep-alive client; with `host`, by that host's certificate. `link`: which version of calls it says."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if host is not None:
            folder = self.site.host_folder(host)
            credentials = (folder / "host.pem", folder / "host.key")
        if credentials is not None:
            context.load_cert_chain(*credentials)
        client = httpx.AsyncClient(base_url=self.url, verify=context, trust_env=False, timeout=PATIENCE_SECONDS)
        if link is not None and credentials is not None:
            client.headers[HEADER] = link
        self._clients.append(client)
        return client

    def token(self, username: str, now: datetime | None = None, seconds: int = 900) -> str:
        """As the local issuer would give it, without the wait for the password."""
        person = LocalDirectory.load(self.site.people).people[username]
        key = read_private_key(self.site.directory / "token.key")
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        issued = int((now or datetime.now(UTC)).timestamp())
        return issue_token(person, key, LOCAL_ISSUER, AUDIENCE, issued, seconds)

    def person(self, username: str) -> httpx.AsyncClient:
        client = self.client()
        client.headers["authorization"] = f"Bearer {self.token(username)}"
        return client

    async def poll(self, host: str, wait_seconds: int = 0) -> list[dict[str, Any]]:
        """What the host is to do, as its relay learns it: permits that it is told of are fetched."""
        client = self.client(host)
        patience = wait_seconds + PATIENCE_SECONDS
        answer = await client.post("/v1/relay/poll", json={"wait_seconds": wait_seconds}, timeout=patience)
        assert answer.status_code == 200, answer.text
        return [await self.fetched(client, each) for each in answer.json()["assignments"]]

    async def fetched(self, client: httpx.AsyncClient, assignment: dict[str, Any]) -> dict[str, Any]:
        if assignment["kind"] != "permit":
            return assignment
        answer = await client.post("/v1/relay/assignment", json={"migration_id": assignment["migration_id"]})
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def open_permit(self, token: str) -> VerifiedPermit:
        key = PermitKey.from_pem((self.site.certs / "gateway" / "permit.pub").read_bytes())
        return verify_permit(token, [key])

    async def entries(self) -> list[dict[str, Any]]:
        """The whole log, decoded."""
        raw = await self.gateway.committer.read(lambda log: list(log.entries(0, log.size)))
        return [json.loads(entry) for entry in raw]

    async def records(self, kind: str) -> list[dict[str, Any]]:
        found = [entry["record"] for entry in await self.entries() if "record" in entry]
        return [record for record in found if record["kind"] == kind]

    async def begin(self, vm: str = "web", destination: str = "b") -> tuple[str, VerifiedPermit]:
        """An allowed migration whose permit the source relay has taken."""
        source = next(plan.host for plan in VMS if plan.name == vm)
        await self.poll(source)
        answer = await self.person("alice").post("/v1/migrations", json={"vm": vm, "destination": destination})
        assert answer.status_code == 201, answer.text
        (assignment,) = await self.poll(source)
        return answer.json()["migration_id"], self.open_permit(assignment["permit"])

    def receipt(self, host: str, permit: VerifiedPermit, role: str, outcome: str, **changes: Any) -> dict[str, Any]:
        """A receipt as a relay makes it; `changes` to its body are signed too."""
        now = datetime.now(UTC)
        claims = permit.claims
        body = {
            "version": 1,
            "role": role,
            "jti": claims.jti,
            "migration_id": claims.migration_id,
            "permit_sha256": hashlib.sha256(permit.token.encode()).hexdigest(),
            "source": claims.source,
            "destination": claims.destination,
            "vm": claims.vm,
            "vm_binding": "uuid",
            "tls": {"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "TLS_AES_256_GCM_SHA384"},
            "lane_cipher": "AES-256-GCM",
            "source_fingerprint": "0" * 64,
            "destination_fingerprint": "1" * 64,
            "channels": [
                {
                    "channel": 0,
                    "port": "memory",
                    "sent_bytes": 1000,
                    "received_bytes": 10,
                    "sent_frames": 2,
                    "received_frames": 1,
                }
            ],
            "resumptions": 0,
            "outcome": outcome,
            "started": rfc3339(now - timedelta(seconds=1)),
            "ended": rfc3339(now),
            "downtime_ms": 12,
            "checkpoint": permit.proof.checkpoint,
            "peer_receipt_sha256": None,
            "content_digests": None,
            **changes,
        }
        return self.sign(host, msgspec.json.encode(body, order="sorted"))

    def sign(self, host: str, body: bytes) -> dict[str, Any]:
        folder = self.site.host_folder(host)
        key = read_private_key(folder / "host.key")
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        chain = [each.public_bytes(Encoding.DER) for each in read_certificates(folder / "host.pem")]
        return {
            "receipt": {
                "body": body.decode(),
                "signature": base64.b64encode(key.sign(body, ec.ECDSA(hashes.SHA256()))).decode(),
                "chain": [base64.b64encode(each).decode() for each in chain],
            }
        }

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


@contextmanager
def given_up_once_recorded(recorder: Recorder) -> Iterator[None]:
    """Whoever waits for a record within is cancelled as soon as it is there."""
    append = recorder.append
    with pytest.MonkeyPatch.context() as patch, trio.CancelScope() as leaving:

        async def append_and_leave(event: Event) -> Recorded:
            recorded = await append(event)
            leaving.cancel()
            await trio.lowlevel.checkpoint()
            return recorded

        patch.setattr(recorder, "append", append_and_leave)
        yield


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@asynccontextmanager
async def running_gateway(site: Site, clock: Clock | None = None) -> AsyncIterator[Running]:
    """Starts one and stops it in order."""
    log = FaultyLog(site)
    async with trio.open_nursery() as nursery:
        config = configuration.load(site.gateway_config)
        start = partial(serve, config, clock=clock or system_clock(), open_log=log)
        running = Running(site, await nursery.start(start), log)
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):
                await running.close()
            running.gateway.stop()


@pytest.fixture
async def running(site: Site) -> AsyncIterator[Running]:
    async with running_gateway(site) as it:
        yield it


def free_address(host: str) -> str:
    """ADDRESS:PORT where nobody listens now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"

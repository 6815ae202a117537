"""Permits for people whose groups are in Active Directory: latency, throughput, and the parts of it.

A real Samba domain controller, a real gateway process with the example bundle, HTTPS. The groups of each person are
cached, as in daily work; the state of the account is read from the controller for each permit all the same. Fifty
people ask at once for the throughput. The bench stands in for the source relays.
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from bench.harness import BenchError, Plan
from bench.permit_latency import DISK, TIMEOUT_SECONDS, gateway, trust
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from policy.identity.active_directory import ActiveDirectory
from policy.identity.directory_account import AccountName
from policy.identity.keys import JwkSet
from policy.identity.oidc import IssuerSettings, TokenVerifier
from policy.jws import encode_base64url, key_id_of, sign
from tests.gateway.active_directory_site import add_active_directory
from tests.policy.identity.samba_ad import (
    REALM,
    SERVICE_PASSWORD,
    Domain,
    TestAuthority,
    add_group,
    add_user,
    provision,
    sid_of,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PEOPLE = 50
REQUESTS_PER_ROUND = 200
QUICK_REQUESTS = 50
PERMITS_OF_ONE_HOST = 60  # that it has not taken; the gateway queues no more than 64
VERIFICATIONS = 500
ISSUER = "https://login.bench.test"
TOKEN_TYPE = "at+jwt"  # noqa: S105 - no secret
KEY = ec.generate_private_key(ec.SECP256R1())


def measure(plan: Plan) -> dict[str, float]:
    """`permit_p50_ms`, `permit_p99_ms`, `permits_per_s`, `ad_lookup_ms`, `token_verify_ms`."""
    requests = QUICK_REQUESTS if plan.quick else REQUESTS_PER_ROUND * plan.rounds
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name, _domain(Path(name)) as (domain, operators):
        folder = Path(name)
        site = _site(folder, domain, operators, 2 * requests + PEOPLE)
        with gateway(site, folder) as (_, url):
            _make_reachable(site, url)
            figures: dict[str, float] = trio.run(_ask_for_permits, site, url, requests)
        figures["ad_lookup_ms"] = trio.run(_look_up, domain)
    figures["token_verify_ms"] = _verify_tokens()
    return figures


@contextmanager
def _domain(folder: Path) -> Iterator[tuple[Domain, str]]:
    """One controller, and the SID of a group that all people are in by way of another."""
    provision(folder / "provisioned")
    authority = TestAuthority()
    controller = start(folder / "provisioned", folder / "dc", authority, f"dc1.{REALM}")
    try:
        with controller.administrator() as administrator:
            add_user(administrator, "svc-sealane", SERVICE_PASSWORD, userAccountControl="66048")
            people = [add_user(administrator, _person(number)) for number in range(PEOPLE)]
            inner = add_group(administrator, "night-shift", people)
            operators = sid_of(administrator, add_group(administrator, "vm-operators", [inner]))
        yield Domain((controller,), authority), operators
    finally:
        controller.stop()


async def _ask_for_permits(site: Site, url: str, requests: int) -> dict[str, float]:
    vms = iter(range(2 * requests + PEOPLE))
    limits = httpx.Limits(max_connections=PEOPLE, max_keepalive_connections=PEOPLE)
    async with httpx.AsyncClient(verify=trust(site), timeout=TIMEOUT_SECONDS, limits=limits) as client:

        async def ask(person: int) -> float:
            body = {"vm": _vm(next(vms)), "destination": "host-b", "reason": "measured by the bench"}
            headers = {"Authorization": f"Bearer {_token(_person(person))}"}
            started = time.perf_counter()
            answer = await client.post(f"{url}/v1/migrations", json=body, headers=headers)
            if answer.status_code != 201:
                raise BenchError(f"the gateway answered {answer.status_code}: {answer.text[:500]}")
            return (time.perf_counter() - started) * 1000

        async def keep_asking(person: int, times: int) -> None:
            for _ in range(times):
                await ask(person)

        async with trio.open_nursery() as nursery:  # everybody's groups are cached after this, and connections open
            for person in range(PEOPLE):
                nursery.start_soon(ask, person)
        one = [await ask(0) for _ in range(requests)]
        started = time.perf_counter()
        each = requests // PEOPLE
        async with trio.open_nursery() as nursery:
            for person in range(PEOPLE):
                nursery.start_soon(keep_asking, person, each)
        elapsed = time.perf_counter() - started
    return {
        "permit_p50_ms": statistics.median(one),
        "permit_p99_ms": statistics.quantiles(one, n=100)[-1],
        "permits_per_s": each * PEOPLE / elapsed,
    }


async def _look_up(domain: Domain) -> float:
    """Groups and state of somebody who is not in the cache, on a connection that is open."""
    directory = ActiveDirectory(domain.settings(receive_seconds=5, deadline_seconds=10), domain.credentials)
    taken = []
    for number in range(PEOPLE):
        name = AccountName("userPrincipalName", f"{_person(number)}@{REALM}")
        started = time.perf_counter()
        await directory.look_up(name, datetime.now(UTC))
        taken.append((time.perf_counter() - started) * 1000)
    directory.close()
    return statistics.median(taken)


def _verify_tokens() -> float:
    verifier = TokenVerifier(
        IssuerSettings(ISSUER, "sealane", frozenset({"ES256"}), account_claim="upn"), JwkSet.parse(_jwks())
    )
    token, now, taken = _token(_person(0)), int(time.time()), []
    for _ in range(VERIFICATIONS):
        started = time.perf_counter()
        verifier.verify(token, now)
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


# --- The site -------------------------------------------------------------------------------------------------------


def _person(number: int) -> str:
    return f"person-{number}"


def _vm(number: int) -> str:
    return f"vm-{number}"


def _hosts(vms: int) -> list[str]:
    return [f"source-{number}" for number in range(math.ceil(vms / PERMITS_OF_ONE_HOST))]


def _site(folder: Path, domain: Domain, operators: str, vms: int) -> Site:
    hosts = _hosts(vms)
    plans = [HostPlan(name, f"127.0.1.{number + 1}:7443") for number, name in enumerate(hosts)]
    site = lay_out_site(
        folder / "site",
        hosts=[*plans, HostPlan("host-b", "127.0.2.1:7443")],
        vms=[VmPlan(_vm(number), str(UUID(int=number + 1)), hosts[number % len(hosts)]) for number in range(vms)],
        now=datetime.now(UTC),
    )
    (site.directory / "jwks.json").write_bytes(_jwks())
    add_active_directory(site, domain, ISSUER)
    config = site.gateway_config.read_text("utf-8")  # with the time-outs of a site, not the short ones of the tests
    for short, usual in (
        ("receive_seconds = 1", "receive_seconds = 5"),
        ("deadline_seconds = 4", "deadline_seconds = 10"),
    ):
        assert short in config
        config = config.replace(short, usual)
    site.gateway_config.write_text(config, "utf-8")
    shutil.rmtree(site.bundle / "tests")  # they speak of the group by its old name
    for file in site.bundle.rglob("*.cedar"):
        file.write_text(file.read_text("utf-8").replace("sealane-local#operators", operators), "utf-8")
    return site


def _make_reachable(site: Site, url: str) -> None:
    """Each source relay polls once, and takes nothing: its permits are queued."""
    for folder in site.certs.glob("hosts/source-*"):
        identity = trust(site)
        identity.load_cert_chain(folder / "host.pem", folder / "host.key")
        with httpx.Client(base_url=url, verify=identity, timeout=TIMEOUT_SECONDS) as client:
            client.post("/v1/relay/poll", json={"wait_seconds": 0}).raise_for_status()


def _jwks() -> bytes:
    numbers = KEY.public_key().public_numbers()
    x, y = (encode_base64url(number.to_bytes(32)) for number in (numbers.x, numbers.y))
    key = {
        "kty": "EC",
        "crv": "P-256",
        "alg": "ES256",
        "use": "sig",
        "kid": key_id_of(KEY.public_key()),
        "x": x,
        "y": y,
    }
    return msgspec.json.encode({"keys": [key]})


def _token(name: str) -> str:
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER, "aud": "sealane", "sub": name, "upn": f"{name}@{REALM}", "iat": now, "exp": now + 600,
    }  # fmt: skip
    return sign(msgspec.json.encode(claims), KEY, key_id=key_id_of(KEY.public_key()), token_type=TOKEN_TYPE)

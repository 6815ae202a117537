"""A gateway and a witness, both whole, over HTTPS: what permits carry then, and how a second history is found."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from structlog.testing import capture_logs

from audit.checkpoint import LogVerifier, open_checkpoint
from audit.cosignature import Algorithm, Cosigner, CosignerKey, cosignatures, cosigners_of
from certs.files import write_private_key
from gateway.config import Address
from gateway.starter import Site
from gateway.witness_config import load_witness_config
from gateway.witness_service import serve_witness
from policy.permit import PermitKey
from tests.gateway.conftest import Running, running_gateway
from transport.errors import OfferRefused
from transport.relay.permits import PermitDesk

pytestmark = pytest.mark.whole

NAME = "witness.example/w1"


@pytest.fixture
def keys(site: Site) -> list[CosignerKey]:
    """Of the witness, whose folder is laid out for the site's log; and a second key of the log."""
    folder = site.directory / "witness"
    folder.mkdir()
    cosigners = [Cosigner(NAME, Ed25519PrivateKey.generate()), Cosigner(NAME, MLDSA44PrivateKey.generate())]
    for name, cosigner in zip(("a.key", "b.key"), cosigners, strict=True):
        write_private_key(folder / name, cosigner.private_key)
    write_private_key(site.certs / "gateway" / "log-ml-dsa.key", MLDSA44PrivateKey.generate())
    (folder / "witness.vkey").write_text("".join(f"{one.key.vkey}\n" for one in cosigners))
    (folder / "witness.toml").write_text(
        f"""
[witness]
listen = "127.0.0.1:0"
name = "{NAME}"
state_dir = "state"
keys = ["a.key", "b.key"]

[tls]
certificate = "../certs/gateway/tls.pem"
private_key = "../certs/gateway/tls.key"

[[logs]]
keys = ["../certs/gateway/log.vkey"]
"""
    )
    return [one.key for one in cosigners]


@asynccontextmanager
async def running_witness(site: Site) -> AsyncIterator[Address]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_witness, load_witness_config(site.directory / "witness" / "witness.toml"))
        nursery.cancel_scope.cancel()


def configure(site: Site, witness: object, required: int = 0) -> None:
    text = site.gateway_config.read_text()
    text = text.replace("[permits]", 'ml_dsa_signing_key = "certs/gateway/log-ml-dsa.key"\n\n[permits]', 1)
    site.gateway_config.write_text(
        f"""{text}
[witnessing]
interval_seconds = 1
request_seconds = 2
required = {required}

[[witnesses]]
url = "https://{witness}"
keys = ["witness/witness.vkey"]
trust_bundle = "certs/ca.pem"
"""
    )


async def until(happened: Callable[[], Any], seconds: float = 20) -> Any:
    with trio.fail_after(seconds):
        while not (answer := happened()):
            await trio.sleep(0.05)
    return answer


def desk(running: Running, keys: list[CosignerKey], required: int) -> PermitDesk:
    gateway = running.site.certs / "gateway"
    return PermitDesk(
        trust_domain=running.site.trust_domain,
        permit_keys=(PermitKey.from_pem((gateway / "permit.pub").read_bytes()),),
        log_verifiers=(LogVerifier.parse(running.site.vkey),),
        witness_keys=tuple(keys),
        witnesses_required=required,
        can_bind_vm=True,
        crl_number=lambda: 2**40,
        clock=lambda: int(time.time()),
    )


async def test_checkpoints_are_cosigned_and_published_with_the_logs_second_signature(
    site: Site, keys: list[CosignerKey]
) -> None:
    async with running_witness(site) as witness:
        configure(site, witness)
        async with running_gateway(site) as running:
            witnessing = running.gateway.keeping.witnessing
            await until(lambda: witnessing.published and witnessing.published.cosignatures)
            await running.begin()
            size = running.gateway.committer.size
            await until(lambda: (witness_size(running) or 0) >= size)
            text = (site.log / "cosigned").read_text()
            log_key = LogVerifier.parse(site.vkey)
            assert open_checkpoint(text, [log_key]).size >= size
            assert [one.algorithm for one in cosignatures(text, keys)] == [Algorithm.ED25519, Algorithm.ML_DSA_44]
            assert witnessing.ml_dsa is not None
            (own,) = cosignatures(text, [witnessing.ml_dsa.key])
            assert own.name == site.log_origin
            health = (await running.client().get("/v1/health")).json()
            assert 0 <= health["witnesses"][NAME] <= 5


async def test_permits_carry_what_relays_require(site: Site, keys: list[CosignerKey]) -> None:
    async with running_witness(site) as witness:
        configure(site, witness, required=1)
        async with running_gateway(site) as running:
            _, permit = await running.begin()
            assert cosigners_of(cosignatures(permit.proof.checkpoint, keys)) == {NAME}
            assert len(permit.proof.checkpoint) <= 4096
            desk(running, keys, 1).verify(permit.token, source=None, destination=None)
            stranger = Cosigner("witness.example/w2", Ed25519PrivateKey.generate()).key
            with pytest.raises(OfferRefused, match="0 of 1 required witnesses"):
                desk(running, [stranger], 1).verify(permit.token, source=None, destination=None)


@pytest.mark.parametrize(("required", "status"), [(1, 503), (0, 201)])
async def test_a_site_that_requires_its_witnesses_gives_no_permit_without_them_and_another_one_goes_on(
    site: Site, keys: list[CosignerKey], required: int, status: int
) -> None:
    configure(site, "127.0.0.1:9", required)
    async with running_gateway(site) as running:
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert answer.status_code == status, answer.text
        if required:
            assert answer.json()["error"]["code"] == "no_cosignature"
            assert await running.poll("a") == []
            return
        (assignment,) = await running.poll("a", 5)
        desk(running, keys, 0).verify(assignment["permit"], source=None, destination=None)
        with pytest.raises(OfferRefused, match="0 of 1 required witnesses"):
            desk(running, keys, 1).verify(assignment["permit"], source=None, destination=None)


async def test_a_log_that_was_put_back_is_shut_when_the_witness_proves_it(site: Site, keys: list[CosignerKey]) -> None:
    async with running_witness(site) as witness:
        configure(site, witness)
        async with running_gateway(site) as running:
            await running.begin()
            size = running.gateway.committer.size
            await until(lambda: (witness_size(running) or 0) >= size)
        # The whole machine is restored from a backup, or a second gateway is made with the first one's keys.
        for name in ("log", "state"):
            shutil.rmtree(site.directory / name)
        async with running_gateway(site) as running:
            committer = running.gateway.committer
            because = await until(lambda: committer.failed_because)
            assert NAME in because or "older copy" in because
            answer = await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
            assert answer.status_code == 503
        entries = [path.read_bytes() for path in (site.log / "tail").iterdir()]
        assert b"witness.disagrees" in b"".join(entries)


def witness_size(running: Running) -> int | None:
    published = running.gateway.keeping.witnessing.published
    return published.checkpoint.size if published and published.cosignatures else None


async def test_the_witness_answers_by_the_protocol_and_serves_monitors(site: Site, keys: list[CosignerKey]) -> None:
    async with running_witness(site) as witness:
        configure(site, witness)
        async with running_gateway(site) as running:
            await until(lambda: witness_size(running))
            async with httpx.AsyncClient(base_url=f"https://{witness}", verify=trust(site), trust_env=False) as client:
                stale = "old 0\n\n" + (site.log / "cosigned").read_text()
                answer = await client.post("/add-checkpoint", content=stale)
                assert (answer.status_code, answer.headers["content-type"]) == (409, "text/x.tlog.size")
                assert int(answer.text) > 0
                with capture_logs() as said:
                    for _ in range(60):
                        assert (await client.post("/add-checkpoint", content="nonsense")).status_code == 400
                assert 20 <= sum(each["event"] == "not cosigned" for each in said) <= 50, "anyone may ask"
                assert (await client.post("/add-checkpoint", content="x" * 70_000)).status_code == 413
                assert (await client.get("/add-checkpoint")).status_code == 404
                origin_hash = hashlib.sha256(site.log_origin.encode()).hexdigest()
                latest = await client.get(f"/{origin_hash}/checkpoint")
                assert cosigners_of(cosignatures(latest.text, keys)) == {NAME}
                assert (await client.get(f"/{'0' * 64}/checkpoint")).status_code == 404
                assert (await client.get("/health")).json() == {"status": "ok", "logs": 1}


def trust(site: Site) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site.ca))

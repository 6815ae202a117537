"""Files that another tool rotates under a running gateway: taken whole within some seconds, or not at all."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import Authority
from certs.files import write_atomically, write_private_key
from gateway.enrolment import files
from gateway.starter import Site
from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.whole


def shown(running: Running) -> bytes:
    """The certificate that the gateway shows now."""
    host, _, port = running.gateway.listen.rpartition(":")
    context = ssl.create_default_context(cafile=str(running.site.certs / "ca.pem"))
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        return tls.getpeercert(True) or b""


async def test_a_new_pair_is_shown_once_it_is_whole(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.05)
    looked = threading.Event()
    authority = Authority.load(site.certs)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = authority.issue_gateway(
        "gateway", key.public_key(), ["localhost"], ["127.0.0.1"], datetime.now(UTC), timedelta(days=9)
    )[0]
    folder = site.certs / "gateway"
    async with running_gateway(site) as running:
        before = await trio.to_thread.run_sync(shown, running)
        original = running.gateway.reloader.reload_tls

        async def noting() -> None:
            try:
                await original()
            finally:
                looked.set()

        monkeypatch.setattr(running.gateway.reloader, "reload_tls", noting)
        write_atomically(folder / "tls.pem", leaf.public_bytes(Encoding.PEM))  # the key is still the old one
        with trio.fail_after(10):
            while not looked.is_set():
                await trio.sleep(0.01)
        assert await trio.to_thread.run_sync(shown, running) == before
        (folder / "tls.key").unlink()
        write_private_key(folder / "tls.key", key)
        with trio.fail_after(10):
            while await trio.to_thread.run_sync(shown, running) != leaf.public_bytes(Encoding.DER):
                await trio.sleep(0.05)


async def test_a_crl_that_an_operator_brings_is_in_force_without_a_signal(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.05)
    async with running_gateway(site) as running:
        gate = running.gateway.desk.gate
        before = gate.minimum_crl_number
        Authority.load(site.certs).publish_crl(datetime.now(UTC))
        with trio.fail_after(10):
            while gate.minimum_crl_number == before:
                await trio.sleep(0.01)
        assert gate.minimum_crl_number == before + 1


def crl_with(authority: Authority, number: x509.ExtensionType) -> bytes:
    """Signed by the CA, with what stands at its number."""
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    builder = builder.last_update(now).next_update(now + timedelta(days=1)).add_extension(number, critical=False)
    return builder.sign(authority._key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("number", [b"\x04\x00", b"\x02\x01\xff"], ids=["no number at all", "a negative number"])
async def test_a_crl_that_cannot_be_read_to_its_end_is_refused_and_the_gateway_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: bytes
) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.05)
    good = (site.certs / "crl.pem").read_bytes()
    authority = Authority.load(site.certs)
    async with running_gateway(site) as running:
        gate = running.gateway.desk.gate
        before, told = gate.minimum_crl_number, running.gateway.desk.reporting.told.version
        bad = x509.UnrecognizedExtension(x509.CRLNumber.oid, number)
        write_atomically(site.certs / "crl.pem", crl_with(authority, bad))
        await trio.sleep(0.5)
        await running.gateway.reload()
        assert (await running.client().get("/v1/health")).status_code == 200
        (record,) = await running.records("config.reloaded")
        assert "crl.pem" in record["details"]["refused"]["tls"]
        assert (gate.minimum_crl_number, running.gateway.desk.reporting.told.version) == (before, told)
        write_atomically(site.certs / "crl.pem", good)
        authority.publish_crl(datetime.now(UTC))
        with trio.fail_after(10):
            while gate.minimum_crl_number == before:
                await trio.sleep(0.01)

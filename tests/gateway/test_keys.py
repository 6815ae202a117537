"""Keys of permits and of the log: files in the clear, files with a passphrase, or in a token, each as it likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import gateway.config as configuration
from audit.checkpoint import LogSigner, LogVerifier, open_checkpoint
from audit.verify import verify_log
from certs.files import read_private_key, write_private_key
from certs.pkcs11 import signing_key
from gateway.composition.key_files import permit_key
from gateway.errors import StartRefused
from gateway.log_keeping import log_signer
from gateway.starter import Site
from tests.certs.test_pkcs11 import named
from tests.gateway.conftest import running_gateway
from tests.gateway.test_watch import edit

__all__ = ["named"]
pytestmark = pytest.mark.whole
PASSPHRASE = b"correct horse battery staple"


def with_passphrase(site: Site, name: str) -> None:
    """The key that is there, in a file that only the passphrase opens."""
    path = site.certs / "gateway" / name
    key = read_private_key(path)
    path.unlink()
    write_private_key(path, key, PASSPHRASE)
    secret = site.directory / f"{name}.pass"
    secret.write_bytes(PASSPHRASE + b"\n")
    secret.chmod(0o600)
    line = f'signing_key = "certs/gateway/{name}"'
    assert line in site.gateway_config.read_text()
    edit(site.gateway_config, lambda text: text.replace(line, f'{line}\npassphrase_file = "{secret.name}"'))


async def test_both_keys_with_a_passphrase(site: Site) -> None:
    with_passphrase(site, "permit.key")
    with_passphrase(site, "log.key")
    async with running_gateway(site) as running:
        _, permit = await running.begin()
        open_checkpoint(permit.proof.checkpoint, [LogVerifier.parse(site.vkey)])


@pytest.mark.parametrize("name", ["permit.key", "log.key"])
def test_a_passphrase_that_is_missing_wrong_or_for_nothing_is_refused_at_the_start(site: Site, name: str) -> None:
    def read() -> None:
        config = configuration.load(site.gateway_config)
        permit_key(config)
        log_signer(config)

    with_passphrase(site, name)
    read()
    secret = site.directory / f"{name}.pass"
    secret.write_bytes(b"another one of some length\n")
    with pytest.raises(StartRefused, match="passphrase"):
        read()
    secret.chmod(0o644)
    with pytest.raises(StartRefused, match="open to other users"):
        read()
    edit(site.gateway_config, lambda text: text.replace(f'passphrase_file = "{secret.name}"', ""))
    with pytest.raises(StartRefused, match="without a passphrase"):
        read()


@pytest.mark.real
async def test_the_permit_key_in_a_token(site: Site, named: Path) -> None:
    path = site.certs / "gateway" / "permit.key"
    path.unlink()
    named.rename(path)
    permit = signing_key(path)
    assert isinstance(permit, ec.EllipticCurvePrivateKey)
    public = permit.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    async with running_gateway(site) as running:
        _, verified = await running.begin()
        open_checkpoint(verified.proof.checkpoint, [LogVerifier.parse(site.vkey)])


@pytest.mark.real
async def test_both_keys_in_a_token(site: Site, named: Path) -> None:
    folder = site.certs / "gateway"
    text = named.read_text()
    for name, key_id in (("permit.key", "01"), ("log.key", "02")):
        (folder / name).unlink()
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text.replace('id = "01"', f'id = "{key_id}"'))
    permit, log = signing_key(folder / "permit.key"), signing_key(folder / "log.key")
    assert isinstance(permit, ec.EllipticCurvePrivateKey)
    assert isinstance(log, ed25519.Ed25519PrivateKey)
    public = permit.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "permit.pub").write_bytes(public)
    (folder / "log.vkey").write_text(LogSigner(site.log_origin, log).vkey + "\n")
    async with running_gateway(site) as running:
        _, verified = await running.begin()
        open_checkpoint(verified.proof.checkpoint, [LogVerifier.parse(site.vkey)])
    assert verify_log(site.log, [site.vkey]).ok


@pytest.mark.real
def test_a_token_that_is_gone_refuses_the_start(site: Site, named: Path) -> None:
    path = site.certs / "gateway" / "permit.key"
    path.unlink()
    path.write_text(named.read_text().replace('token = "sealane"', 'token = "another"'))
    path.chmod(0o600)
    with pytest.raises(StartRefused, match="token"):
        permit_key(configuration.load(site.gateway_config))

"""A CA whose key is in a PKCS#11 token, with SoftHSM in the place of one that can be touched."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority
from certs.errors import CredentialError, KeyFileError
from certs.files import read_crl
from certs.pkcs11 import TokenEd25519Key, TokenKey, signing_key, token_key
from certs.verification import Trust, verify_chain

pytestmark = pytest.mark.real

NOW = datetime.now(UTC)
MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "87654321"


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names a fresh key pair in a fresh token."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("TEST_PIN", PIN)
    make = ["softhsm2-util", "--init-token", "--free", "--label", "sealane", "--so-pin", "12345678", "--pin", PIN]
    pair = ["pkcs11-tool", "--module", MODULE, "--token-label", "sealane", "--login", "--pin", "env:TEST_PIN"]
    p256 = [*pair, "--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "ca"]
    log = [*pair, "--keypairgen", "--key-type", "EC:edwards25519", "--id", "02", "--label", "log"]
    for command in (make, p256, log):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    pin, file = tmp_path / "pin", tmp_path / "key.toml"
    pin.write_text(f"{PIN}\n")
    file.write_text(f'module = "{MODULE}"\ntoken = "sealane"\nid = "01"\npin_file = "{pin}"\n')
    for private in (pin, file):
        private.chmod(0o600)
    return file


def test_an_issuing_ca_in_a_token_issues_and_revokes(named: Path, tmp_path: Path) -> None:
    for folder in ("root", "issuing"):
        (tmp_path / folder).mkdir()
    root = Authority.create(tmp_path / "root", "td.example", NOW)
    root.create_issuing(tmp_path / "issuing", NOW, token_file=named)
    issuing = Authority.load(tmp_path / "issuing")
    chain = issuing.issue_host("a", ec.generate_private_key(ec.SECP256R1()).public_key(), NOW)
    crls = [read_crl(authority.crl_file) for authority in (root, issuing)]
    trust = Trust((root.certificate,), tuple(crls))
    assert verify_chain(chain, trust, "td.example", NOW).spiffe_id.name == "a"
    assert issuing.revoke(chain[0].serial_number, NOW) == 2
    assert read_crl(issuing.crl_file).get_revoked_certificate_by_serial_number(chain[0].serial_number) is not None
    assert b"PRIVATE" not in (tmp_path / "issuing/ca.key").read_bytes()


def test_a_root_in_a_token(named: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    Authority.create(tmp_path / "root", "td.example", NOW, token_file=named)
    assert Authority.load(tmp_path / "root").publish_crl(NOW) == 2


def test_the_key_does_not_leave_its_token(named: Path) -> None:
    key = signing_key(named)
    assert isinstance(key, TokenKey)
    with pytest.raises(TypeError):
        key.private_numbers()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PIN, "00000000"),
        ('id = "01"', 'id = "02"'),
        ('"sealane"', '"other"'),
        (MODULE, "/no/module.so"),
        ("pin_", "p_"),
    ],
)
def test_what_is_named_wrongly_is_refused_without_the_pin_in_the_words(
    old: str, new: str, named: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pin" if old == PIN else named
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises((KeyFileError, CredentialError)) as refused:
        (tmp_path / "root").mkdir()
        Authority.create(tmp_path / "root", "td.example", NOW, token_file=named)
    assert PIN not in str(refused.value)
    assert not (tmp_path / "root/ca.pem").exists()


GOOD = 'module = "/m.so"\ntoken = "sealane"\nid = "01"\npin_file = "/pin"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace('id = "01"\n', ""), "id is missing; write the CKA_ID of the key pair"),
        (GOOD.replace('"01"', "1"), "id is not what it must be; write the CKA_ID"),
        (GOOD.replace("/m.so", "m.so"), "module is not what it must be; write the absolute path of a PKCS#11 module"),
        (
            GOOD.replace("pin_file", "pinfile"),
            "'pinfile' is no key of a file that names a key in a token; did you mean",
        ),
        (GOOD + 'pin = "1234"', "'pin' is no key of a file that names a key in a token"),
        ("\x00", "is neither a private key in PEM nor TOML that names one in a PKCS#11 token"),
        ("a = " + "[" * 5000, "is neither a private key in PEM nor TOML"),
    ],
)
def test_a_file_that_names_no_key_is_told_by_key_and_its_values_are_not_repeated(
    text: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "key.toml"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(KeyFileError) as refused:
        signing_key(file)
    assert said in str(refused.value)
    assert "1234" not in str(refused.value)


def test_a_pin_that_others_can_read_is_refused(named: Path, tmp_path: Path) -> None:
    (tmp_path / "pin").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        signing_key(named)


def test_a_log_key_in_a_token_signs_as_one_in_a_file_does(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named.write_text(named.read_text().replace('id = "01"', 'id = "02"'))
    key = signing_key(named)
    assert isinstance(key, TokenEd25519Key)
    for data in (b"", b"entry", b"a longer entry than pkcs11-tool takes" * 1_000):
        key.public_key().verify(key.sign(data), data)
    with pytest.raises(TypeError):
        key.private_bytes_raw()
    with pytest.raises(KeyFileError, match="P-256"):
        token_key(named, named.read_bytes())
    monkeypatch.setenv("SOFTHSM2_CONF", "/nonexistent")
    with pytest.raises(OSError, match="does not sign"):
        key.sign(b"entry")

"""Files of keys: private from the first byte, whole after a crash, refused when anyone else could have read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from certs import files
from certs.errors import CredentialError, KeyFileError
from certs.files import read_certificates, read_crl, read_private_key, write_atomically, write_private_key
from tests.certs.chains import make_ca, make_crl


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_written_key_reads_back_and_is_private_even_without_umask(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    before = os.umask(0)
    try:
        write_private_key(tmp_path / "host.key", key)
    finally:
        os.umask(before)
    read = read_private_key(tmp_path / "host.key")
    assert isinstance(read, ec.EllipticCurvePrivateKey)
    assert read.private_numbers() == key.private_numbers()
    assert mode_of(tmp_path / "host.key") == 0o600
    assert names_in(tmp_path) == ["host.key"]


def test_a_key_is_never_overwritten(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path = tmp_path / "host.key"
    write_private_key(path, key)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="exists"):
        write_private_key(path, ec.generate_private_key(ec.SECP256R1()))
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["host.key"]


def test_a_link_laid_in_the_keys_place_is_not_written_through(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    (tmp_path / "host.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="exists"):
        write_private_key(tmp_path / "host.key", key)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o610, 0o644, 0o777])
def test_a_key_open_to_others_is_refused_with_the_remedy(
    mode: int, tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    path = tmp_path / "host.key"
    write_private_key(path, key)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600") as refused:
        read_private_key(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_of_another_user_is_refused() -> None:
    status = os.stat_result((stat.S_IFREG | 0o600, 0, 0, 1, os.geteuid() + 1, 0, 0, 0, 0, 0))
    with pytest.raises(KeyFileError, match="belongs to user"):
        files._require_private(Path("host.key"), status)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "."):
        with pytest.raises(KeyFileError, match="regular file"):
            read_private_key(tmp_path / name)


def test_a_missing_key_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        read_private_key(tmp_path / "host.key")


def test_other_formats_of_keys_are_refused(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pkcs8, sec1 = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL
    for data in (
        b"",
        b"junk",
        key.private_bytes(Encoding.PEM, sec1, NoEncryption()),
        key.private_bytes(Encoding.DER, pkcs8, NoEncryption()),
        key.private_bytes(Encoding.PEM, pkcs8, BestAvailableEncryption(b"secret")),
        key.private_bytes(Encoding.PEM, pkcs8, NoEncryption())[:-60],
        key.private_bytes(Encoding.PEM, pkcs8, NoEncryption()) + b"#" * files.MAX_KEY_BYTES,
    ):
        path = tmp_path / "host.key"
        write_atomically(path, data, 0o600)
        with pytest.raises(KeyFileError):
            read_private_key(path)


def test_a_file_is_replaced_whole_with_the_mode_that_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "crl.pem"
    for data, mode in ((b"one", 0o644), (b"two", 0o600)):
        write_atomically(path, data, mode)
        assert path.read_bytes() == data
        assert mode_of(path) == mode
    assert names_in(tmp_path) == ["crl.pem"]


@pytest.mark.parametrize("failing", ["fsync", "fchmod"])
def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "crl.pem"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["crl.pem"]


def test_a_file_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "crl.pem", []
    real = os.fsync

    def watched(descriptor: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomically(path, b"data")
    assert seen == [(False, False), (True, True)]  # the file without its name, then the folder with it


def test_two_crls_in_one_file_are_refused(tmp_path: Path) -> None:
    pem = make_crl(make_ca()).public_bytes(Encoding.PEM)
    (tmp_path / "crl.pem").write_bytes(pem)
    assert read_crl(tmp_path / "crl.pem").public_bytes(Encoding.PEM) == pem
    (tmp_path / "crl.pem").write_bytes(pem * 2)
    with pytest.raises(CredentialError, match="exactly one"):
        read_crl(tmp_path / "crl.pem")


def test_files_without_certificates_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        (tmp_path / "ca.pem").write_bytes(data)
        with pytest.raises(CredentialError, match=r"ca\.pem"):
            read_certificates(tmp_path / "ca.pem")
    with pytest.raises(CredentialError, match="cannot be read"):
        read_certificates(tmp_path / "missing.pem")
    (tmp_path / "ca.pem").write_bytes(b"x" * (files.MAX_CERTIFICATES_BYTES + 1))
    with pytest.raises(CredentialError, match="larger"):
        read_certificates(tmp_path / "ca.pem")


def test_what_can_be_read_in_part_only_is_refused_where_it_is_named(tmp_path: Path) -> None:
    ca, garbage = make_ca(), b"\x04\x00"
    now, end = ca.certificate.not_valid_before_utc, ca.certificate.not_valid_after_utc
    crl = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject).last_update(now).next_update(end)
    certificate = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(ca.certificate.subject)
    certificate = certificate.public_key(ca.key.public_key()).serial_number(1)
    certificate = certificate.not_valid_before(now).not_valid_after(end)
    (tmp_path / "crl.pem").write_bytes(
        crl.add_extension(x509.UnrecognizedExtension(x509.CRLNumber.oid, garbage), critical=False)
        .sign(ca.key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    (tmp_path / "ca.pem").write_bytes(
        certificate.add_extension(x509.UnrecognizedExtension(x509.BasicConstraints.oid, garbage), critical=True)
        .sign(ca.key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    with pytest.raises(CredentialError, match=r"crl\.pem.*cannot be read"):
        read_crl(tmp_path / "crl.pem")
    with pytest.raises(CredentialError, match=r"ca\.pem.*no readable"):
        read_certificates(tmp_path / "ca.pem")

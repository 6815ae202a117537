"""A host's files: a bad one fails at start, not at the first connection."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from certs.credentials import HostCredentials
from certs.errors import CertificateError, CredentialError, KeyFileError
from certs.files import write_atomically, write_private_key
from tests.certs.chains import DAY, NOW, Site, make_ca, make_credentials, make_crl, make_host, make_site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sound files of host-a: host.pem host.key ca.pem crl.pem."""
    ca = make_ca()
    host = make_host(ca, "host-a")
    write_private_key(tmp_path / "host.key", host.key)
    for name, item in (("host.pem", host.certificate), ("ca.pem", ca.certificate), ("crl.pem", make_crl(ca, number=4))):
        write_atomically(tmp_path / name, item.public_bytes(Encoding.PEM))
    return tmp_path


def load(folder: Path) -> HostCredentials:
    return HostCredentials.load(folder / "host.pem", folder / "host.key", folder / "ca.pem", [folder / "crl.pem"])


def replace_key(folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    (folder / "host.key").unlink()
    write_private_key(folder / "host.key", key)


def test_sound_files_give_an_identity_that_is_usable_now(folder: Path) -> None:
    credentials = load(folder)
    credentials.require_usable(NOW)
    assert str(credentials.spiffe_id) == "spiffe://td.example/host/host-a"
    assert credentials.crl_number == 4
    assert "private_key" not in repr(credentials)


def _put(name: str, item: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda folder: write_atomically(folder / name, item())


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (lambda f: (f / "host.pem").unlink(), CredentialError, "host.pem"),
        (lambda f: (f / "crl.pem").unlink(), CredentialError, "crl.pem"),
        (lambda f: (f / "host.key").chmod(0o644), KeyFileError, "chmod 600"),
        (lambda f: replace_key(f, ec.generate_private_key(ec.SECP256R1())), KeyFileError, "does not belong"),
        (lambda f: replace_key(f, ec.generate_private_key(ec.SECP384R1())), KeyFileError, "P-256"),
        (lambda f: replace_key(f, rsa.generate_private_key(65537, 2048)), KeyFileError, "P-256"),
        (
            _put("host.pem", lambda: make_host(make_ca(), uris=[]).certificate.public_bytes(Encoding.PEM)),
            CredentialError,
            "SPIFFE",
        ),
        (
            _put("ca.pem", lambda: make_host(make_ca()).certificate.public_bytes(Encoding.PEM)),
            CredentialError,
            "no root CA",
        ),
        (
            _put("ca.pem", lambda: make_ca("sub", parent=make_ca()).certificate.public_bytes(Encoding.PEM)),
            CredentialError,
            "no root CA",
        ),
        (
            _put("crl.pem", lambda: make_crl(make_ca(), number=None).public_bytes(Encoding.PEM)),
            CredentialError,
            "number",
        ),
    ],
)
def test_a_bad_file_is_named(
    fault: Callable[[Path], None], error: type[CertificateError], says: str, folder: Path
) -> None:
    fault(folder)
    with pytest.raises(error, match=says) as refused:
        load(folder)
    assert str(folder) in str(refused.value)


def test_a_configuration_without_any_crl_is_refused(folder: Path) -> None:
    with pytest.raises(CredentialError, match="no CRL"):
        HostCredentials.load(folder / "host.pem", folder / "host.key", folder / "ca.pem", [])


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site()


@pytest.mark.parametrize(
    ("now", "says"),
    [(NOW + timedelta(hours=23, minutes=30), "validity"), (NOW + 800 * DAY, "clock"), (NOW - 800 * DAY, "clock")],
)
def test_at_start_a_host_sees_that_its_peers_would_refuse_it(now: object, says: str, site: Site) -> None:
    with pytest.raises(CredentialError, match=says):
        site.credentials().require_usable(now)  # type: ignore[arg-type]


def test_at_start_a_host_sees_that_it_is_revoked_or_of_another_ca(site: Site) -> None:
    host = make_host(site.ca)
    with pytest.raises(CredentialError, match=r"revoked.*host\.key away, and enrol again"):
        site.revoking(host.certificate).of(host).require_usable(NOW)
    other = make_ca("Other")
    with pytest.raises(CredentialError, match="untrusted"):
        make_credentials(host, [other], [make_crl(other)]).require_usable(NOW)


def test_the_crl_number_is_the_lowest_of_those_in_use() -> None:
    first, second = make_ca("First"), make_ca("Second")
    crls = [make_crl(first, number=3), make_crl(first, number=9), make_crl(second, number=5)]
    host = make_host(first)
    assert make_credentials(host, [first, second], crls).crl_number == 5
    assert make_credentials(host, [first], []).crl_number == 0

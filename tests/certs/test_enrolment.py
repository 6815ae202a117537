"""Tokens and signing requests: strict, and nothing of a request but its key counts."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs.enrolment import MAX_REQUEST_BYTES, EnrolmentToken, make_request, requested_key
from certs.errors import CredentialError

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
DIGESTS = st.binary(min_size=32, max_size=32)


@given(NAMES, DIGESTS, DIGESTS)
def test_a_token_reads_as_it_was_written(host: str, root: bytes, secret: bytes) -> None:
    token = EnrolmentToken(host, root, secret)
    assert EnrolmentToken.parse(token.text()) == token
    assert token.sha256() == hashlib.sha256(token.text().encode()).digest()


@given(st.data())
def test_a_token_with_one_other_character_is_another_token_or_none(data: st.DataObject) -> None:
    token = EnrolmentToken("host-a", b"\x01" * 32, b"\x02" * 32)
    text = token.text()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda character: character != text[at]))
    try:
        read = EnrolmentToken.parse(text[:at] + other + text[at + 1 :])
    except CredentialError:
        return
    assert read.sha256() != token.sha256()
    assert (read.host, read.root_sha256, read.secret) != (token.host, token.root_sha256, token.secret)


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_refused_without_being_repeated(text: str) -> None:
    said = ""
    try:
        EnrolmentToken.parse(text)
    except CredentialError as error:
        said = str(error)
    assert len(text) < 12 or text not in said


def test_a_token_does_not_show_its_secret() -> None:
    token = EnrolmentToken("host-a", b"\x01" * 32, b"\x02" * 32)
    assert "\\x02" not in repr(token)


def test_the_key_of_a_request_is_read_and_names_in_it_are_not() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert requested_key(make_request(key)) == key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://td.example/host/root")])
    wishes = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )  # fmt: skip
    assert requested_key(wishes.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)) == key.public_key()


def _of_other_signature() -> bytes:
    der = bytearray(
        x509.load_pem_x509_csr(make_request(ec.generate_private_key(ec.SECP256R1()))).public_bytes(Encoding.DER)
    )
    der[-1] ^= 1
    try:
        return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    except ValueError:
        return bytes(der)


def _of_rsa() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def _of_p384() -> bytes:
    return make_request(ec.generate_private_key(ec.SECP384R1()))


@pytest.mark.parametrize(
    "make",
    [
        _of_other_signature,
        _of_rsa,
        _of_p384,
        lambda: b"",
        lambda: b"-----BEGIN",
        lambda: b"x" * (MAX_REQUEST_BYTES + 1),
    ],
    ids=["another signature", "an RSA key", "a P-384 key", "nothing", "half a line", "too long"],
)
def test_other_requests_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(CredentialError):
        requested_key(make())

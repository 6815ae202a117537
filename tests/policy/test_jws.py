"""The strict check: one spelling of a token, one kind of key, and the library's every exception a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from jose import jws as python_jose
from joserfc import jwk as joserfc_jwk
from joserfc import jws as joserfc_jws
from joserfc.errors import JoseError

from policy.errors import TOKEN_CHECKS, TokenRefused
from policy.jws import (
    SUPPORTED_ALGORITHMS,
    VerificationKey,
    decode_base64url,
    decode_object,
    encode_base64url,
    key_id_of,
    parse_strict,
    sign,
    verify_signature,
)
from tests.policy.forgery import FORGERIES, Forgery, Material, dump, forge, other_spelling, raw_signature, segment

KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
RSA_2048 = rsa.generate_private_key(65_537, 2048)
RSA_1024 = rsa.generate_private_key(65_537, 1024)  # noqa: S505 - the weak key that must be refused
KEY_ID = key_id_of(KEY.public_key())
HEADER = {"alg": "ES256", "kid": KEY_ID, "typ": "test+jwt"}
CLAIMS: dict[str, Any] = {"iss": "https://issuer.test", "sub": "alice", "list": [1, {"a": "é"}]}
MATERIAL = Material(HEADER, CLAIMS, KEY, STRANGER)
ES256 = frozenset({"ES256"})
OURS = VerificationKey(KEY_ID, KEY.public_key(), "ES256")


def read(token: str, key: VerificationKey = OURS, algorithms: frozenset[str] = ES256) -> dict[str, Any]:
    parsed = parse_strict(token, algorithms=algorithms)
    verify_signature(parsed, key)
    return dict(parsed.claims)


def refusal(token: str, key: VerificationKey = OURS, algorithms: frozenset[str] = ES256) -> str:
    with pytest.raises(TokenRefused) as refused:
        read(token, key, algorithms)
    assert refused.value.check in TOKEN_CHECKS
    return refused.value.check


def joserfc_accepts(token: str) -> bool:
    try:
        joserfc_jws.deserialize_compact(token, joserfc_jwk.ECKey.import_key(KEY), algorithms=["ES256"])
    except (JoseError, ValueError):
        return False
    return True


def test_a_good_token_is_read_and_joserfc_agrees() -> None:
    token = sign(dump(CLAIMS), KEY, key_id=KEY_ID, token_type="test+jwt")
    assert read(token) == CLAIMS
    assert joserfc_accepts(token)
    assert read(MATERIAL.good) == CLAIMS


@pytest.mark.parametrize(
    "forgery", [f for f in FORGERIES if f.check != "type" and f.name != "a kid of nobody"], ids=lambda f: f.name
)
def test_refuses(forgery: Forgery) -> None:
    assert refusal(forgery.make(MATERIAL)) == forgery.check


def test_refuses_a_kid_that_names_another_key() -> None:
    token = MATERIAL.header_with(kid="other")
    assert python_jose.verify(token, MATERIAL.public_bytes(Encoding.PEM).decode(), ["ES256"])  # what the library takes
    assert refusal(token) == "key"


def test_refuses_es256_under_a_p384_key() -> None:
    token = forge(HEADER, CLAIMS, P384)
    assert refusal(token, VerificationKey(KEY_ID, P384.public_key())) == "key"


def test_refuses_an_ec_key_for_rs256_and_an_rsa_key_for_es256() -> None:
    rsa_token = forge({**HEADER, "alg": "RS256"}, CLAIMS, RSA_2048)
    assert refusal(rsa_token, VerificationKey(KEY_ID, KEY.public_key()), frozenset({"RS256"})) == "key"
    assert refusal(MATERIAL.good, VerificationKey(KEY_ID, RSA_2048.public_key())) == "key"


def test_refuses_a_key_that_is_for_another_algorithm() -> None:
    assert refusal(MATERIAL.good, VerificationKey(KEY_ID, KEY.public_key(), "ES384")) == "key"


def test_takes_rsa_of_2048_bits_and_refuses_1024() -> None:
    header, rs256 = {**HEADER, "alg": "RS256"}, frozenset({"RS256"})
    good, weak = forge(header, CLAIMS, RSA_2048), forge(header, CLAIMS, RSA_1024)
    assert read(good, VerificationKey(KEY_ID, RSA_2048.public_key()), rs256) == CLAIMS
    assert refusal(weak, VerificationKey(KEY_ID, RSA_1024.public_key()), rs256) == "key"


def test_refuses_an_rsa_signature_of_the_wrong_length() -> None:
    token = forge({**HEADER, "alg": "RS256"}, CLAIMS, RSA_2048) + "AAAA"
    key = VerificationKey(KEY_ID, RSA_2048.public_key())
    assert refusal(token, key, frozenset({"RS256"})) in {"signature", "form"}


@pytest.mark.parametrize(
    "error", [OverflowError, RecursionError, ValueError, KeyError, TypeError, MemoryError], ids=lambda e: e.__name__
)
def test_whatever_the_library_raises_is_a_refusal(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise error

    monkeypatch.setattr("policy.jws.jws.verify", broken)
    assert refusal(MATERIAL.good) == "signature"


def test_refuses_when_the_library_reads_another_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.jws.jws.verify", lambda *_: b'{"sub":"mallory"}')
    assert refusal(MATERIAL.good) == "signature"


def test_an_algorithm_that_is_no_public_key_signature_is_our_mistake() -> None:
    assert "HS256" not in SUPPORTED_ALGORITHMS
    for name in ("HS256", "none", "PS256", "EdDSA"):
        with pytest.raises(ValueError, match=name):
            parse_strict(MATERIAL.good, algorithms=frozenset({name}))


def test_both_spellings_of_a_signature_verify_so_no_hash_of_a_token_may_count() -> None:
    malleated = other_spelling(MATERIAL.good)
    assert malleated != MATERIAL.good
    assert read(malleated) == CLAIMS


def test_eight_levels_are_taken() -> None:
    assert read(MATERIAL.claims_text(b'"x":' + b"[" * 7 + b"]" * 7))


def test_neither_repr_nor_error_shows_the_token() -> None:
    parsed = parse_strict(MATERIAL.good, algorithms=ES256)
    assert MATERIAL.good[:40] not in repr(parsed)
    with pytest.raises(TokenRefused) as refused:
        read(forge(HEADER, CLAIMS, STRANGER))
    assert MATERIAL.good[:40] not in str(refused.value)


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_.=-]{0,80}", fullmatch=True))
def test_any_text_is_a_token_or_a_refusal(text: str) -> None:
    refusal(text)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_signed_bytes_are_read_or_refused(header: bytes, payload: bytes) -> None:
    assert refusal(forge(header, payload, KEY))


@given(st.binary(max_size=100))
def test_base64url_comes_back(data: bytes) -> None:
    if data:
        assert decode_base64url(encode_base64url(data)) == data


@given(st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True))
def test_what_base64url_takes_has_one_spelling(text: str) -> None:
    try:
        assert encode_base64url(decode_base64url(text)) == text
    except TokenRefused as refused:
        assert refused.check == "form"  # noqa: PT017 - both answers are right, depending on the text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text("abé", max_size=3), json_values, max_size=4))
def test_json_comes_back(value: dict[str, Any]) -> None:
    assert decode_object(json.dumps(value).encode(), max_depth=20) == value


@given(st.integers(0, len(MATERIAL.good) - 1), st.characters(codec="ascii"))
def test_any_changed_character_is_refused(position: int, character: str) -> None:
    token = MATERIAL.good[:position] + character + MATERIAL.good[position + 1 :]
    if token == MATERIAL.good:
        assert read(token) == CLAIMS
        assert joserfc_accepts(token)
    else:
        refusal(token)
        assert not joserfc_accepts(token)


@given(st.binary(min_size=60, max_size=68))
def test_joserfc_as_second_opinion_on_signatures(signature: bytes) -> None:
    token = f"{MATERIAL.good.rpartition('.')[0]}.{segment(signature)}"
    assert refusal(token) == "signature"
    assert not joserfc_accepts(token)


@pytest.mark.parametrize("forgery", [f for f in FORGERIES if f.check == "signature"], ids=lambda f: f.name)
def test_joserfc_refuses_the_same_signatures(forgery: Forgery) -> None:
    assert not joserfc_accepts(forgery.make(MATERIAL))


def test_a_signature_over_the_payload_alone_is_refused() -> None:
    header, payload, _ = MATERIAL.good.split(".")
    assert refusal(f"{header}.{payload}.{segment(raw_signature(KEY, payload.encode()))}") == "signature"
